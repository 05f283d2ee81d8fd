"""Annotations of a whole split in a few flat arrays, kept in a file that all processes share."""
