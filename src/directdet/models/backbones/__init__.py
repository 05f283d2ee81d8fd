"""Backbones: images in, feature maps by name out."""
