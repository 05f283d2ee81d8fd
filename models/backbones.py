"""Backbones by name: each a function of (width, or None for the published one; normalisation, "bn" or "gn")."""

from .resnet import resnet18, resnet50, resnet101

BACKBONES = {"resnet18": resnet18, "resnet50": resnet50, "resnet101": resnet101}
