"""Backbones by name: each a function of (width, or None for the published one; norm, "bn" or "gn").

Those that SSD is built on, and the single map for two-stage detectors, also take norm="none".
"""

from directdet.models.backbones.dsod import dsod
from directdet.models.backbones.resnet import resnet18, resnet50, resnet101
from directdet.models.backbones.root_resnet import SSD_RESNETS
from directdet.models.backbones.swin import swin_t
from directdet.models.backbones.vgg import vgg16, vgg16_conv5

BACKBONES = {"resnet18": resnet18, "resnet50": resnet50, "resnet101": resnet101, "swin_t": swin_t}
TWO_STAGE_BACKBONES = {**BACKBONES, "vgg16": vgg16_conv5}  # one map of stride 16 will do, too
SSD_BACKBONES = {"vgg16": vgg16, "dsod": dsod, **SSD_RESNETS}
