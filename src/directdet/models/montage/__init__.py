"""Montage pre-training: a backbone with a dense classifier."""
