"""Backbones: from images to named feature maps."""
