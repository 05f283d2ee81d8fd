"""Shared by the whole package: user-facing errors, checked settings, atomic file writing, plug-in loading."""
