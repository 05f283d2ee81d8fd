"""Annotations to samples: dataset layouts, checks, augmentation and batching."""
