"""Montage pre-training: a classifier of cells, for its backbone."""
