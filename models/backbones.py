"""Backbones by name: each a function of (width, or None for the published one; normalisation, "bn" or "gn")."""

from .resnet import resnet18, resnet50, resnet101
from .swin import swin_t

BACKBONES = {"resnet18": resnet18, "resnet50": resnet50, "resnet101": resnet101, "swin_t": swin_t}
