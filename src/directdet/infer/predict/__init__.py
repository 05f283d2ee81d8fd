"""Detecting on folders, videos and cameras, and writing what was found."""
