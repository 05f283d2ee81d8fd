"""The configuration of SSD. Does not import torch, because recipes use it."""

from dataclasses import dataclass
from typing import Literal

from directdet.common.settings import Channels, Count, Positive, SettingError, Share, check_fields
from directdet.models.backbones.names import check_backbone


@dataclass(frozen=True)
class SSDConfig:
    """Settings of the network, its training targets and its post-processing.

    Defaults are those of ScratchDet's best VGG-16 (Table 1).

    Attributes:
        num_classes: number of object classes, without background.
        backbone: its name.
        width: channels of the backbone's stem; None is the published width. The extra layers scale with it.
        norm: normalisation of the backbone subnetwork including the extra layers: "bn", "gn", or "none" (original SSD).
        head_norm: whether the detection head subnetwork is normalised too: with group normalisation if norm="gn",
            otherwise with batch normalisation.
        extras: extra layers: "ssd" (conv8 to conv11 of the original), "residual" (ScratchDet's blocks) or "dsod".
        size: side of the square input, in pixels, 193 to 768. Maps and sizes of priors follow from it: as in
            SSD300 where the maps are six, as in SSD512 where they are seven.
        priors: the set of prior box sizes, "voc" or "coco".
        last_map_3x3: whether the last map of extras="residual" is 3x3, as in the authors' PyTorch code, instead of 1x1.
        l2_norm: whether conv4_3 is L2-normalised, as in the original SSD; ScratchDet removed this. With extras="dsod",
            all six maps, as in DSOD's code.
        l2_scale: the length that l2_norm starts at.
        positive_iou: priors are positive from this IoU; so is the best prior of each object.
        negative_ratio: number of negatives per positive in the loss, the hardest of each image.
        candidates: (prior, class) pairs per round of NMS, best first; see deploy.select_in_rounds.
        score_threshold: detections below it are left out.
        nms: IoU above which NMS suppresses detections of the same class.
        detections: of an image, at most.
        in_channels: channels of the pictures; training takes those of its data.
    """

    num_classes: Count
    backbone: str = "vgg16"
    width: Count | None = None
    norm: Literal["bn", "gn", "none"] = "bn"
    head_norm: bool = True
    extras: Literal["ssd", "residual", "dsod"] = "ssd"
    size: Count = 300
    priors: Literal["voc", "coco"] = "voc"
    last_map_3x3: bool = False
    l2_norm: bool = False
    l2_scale: Positive = 20.0
    positive_iou: Share = 0.5
    negative_ratio: Count = 3
    score_threshold: Share = 0.01
    nms: Share = 0.45
    candidates: Count = 400
    detections: Count = 200
    in_channels: Channels = 3

    @property
    def masks(self) -> bool:
        """SSD does not predict masks."""
        return False

    def __post_init__(self) -> None:
        check_fields(self, "model.")
        check_backbone("model.backbone", self.backbone, "ssd")
        if self.last_map_3x3 and self.extras != "residual":
            raise SettingError(f"model.last_map_3x3: true requires extras=residual, not extras={self.extras}")
