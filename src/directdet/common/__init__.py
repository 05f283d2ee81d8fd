"""Shared by the whole package: the errors a user sees, and atomic file writing."""
