"""SSD's backbones by name: each a function of (width, or None for the published one; norm, "bn", "gn" or "none")."""

from .dsod import dsod
from .ssd_resnet import SSD_RESNETS
from .vgg import vgg16

SSD_BACKBONES = {"vgg16": vgg16, "dsod": dsod, **SSD_RESNETS}
