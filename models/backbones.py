"""Backbones by name: each a function of (width, or None for the published one; normalisation, "bn" or "gn")."""

from .resnet import resnet18, resnet50, resnet101
from .swin import swin_t
from .vgg import vgg16_conv5

BACKBONES = {"resnet18": resnet18, "resnet50": resnet50, "resnet101": resnet101, "swin_t": swin_t}
# A two-stage detector can also do with one map of stride 16. The normalisation of this one may be "none", too.
TWO_STAGE_BACKBONES = {**BACKBONES, "vgg16": vgg16_conv5}
