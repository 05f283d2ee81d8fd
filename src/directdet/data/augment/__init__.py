"""Augmentation and resizing of training pictures with their boxes and masks."""
