"""Augmentation and resizing of training images with their boxes and masks."""
