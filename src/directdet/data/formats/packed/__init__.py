"""Datasets whose files hold many pictures each, with their annotations."""
