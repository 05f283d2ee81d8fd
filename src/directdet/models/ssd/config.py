"""What defines an SSD and its training targets. Imports no torch: recipes are made of it."""

from dataclasses import dataclass
from typing import Literal

from directdet.common.settings import Count, SettingError, Share, check_fields
from directdet.models.backbones.names import check_backbone


@dataclass(frozen=True)
class SSDConfig:
    """Everything that defines the network and its training targets. Defaults are ScratchDet's best VGG-16 (Table 1).

    Attributes:
        num_classes: object classes, background not counted.
        width: channels of the backbone's stem; None is the published network. The extra layers are as much slimmer.
        norm: of the backbone subnetwork, extra layers included: "bn", "gn", or "none" (the original SSD).
        head_norm: the detection head subnetwork is normalised too: by group normalisation with norm="gn", else by
            batch normalisation.
        extras: "ssd", conv8 to conv11 of the original, or "residual", ScratchDet's blocks.
        size: side of the square input, pixels.
        priors: "voc" or "coco", the sides of the prior boxes.
        last_map_3x3: the last map of extras="residual" is 3x3, as in the authors' PyTorch code, and not 1x1.
        l2_norm: conv4_3 is L2-normalised, as in the original SSD; ScratchDet took that out.
        positive_iou: priors are positive from this IoU on, and so is the best prior of each object.
        negative_ratio: negatives that count for each positive, the hardest of its image.
        candidates: (prior, class) pairs that enter NMS at a time, best first; see deploy.choose_in_rounds.
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
    positive_iou: Share = 0.5
    negative_ratio: Count = 3
    score_threshold: Share = 0.01
    nms: Share = 0.45
    candidates: Count = 400
    detections: Count = 200

    @property
    def masks(self) -> bool:
        """It finds boxes alone."""
        return False

    def __post_init__(self) -> None:
        check_fields(self, "model.")
        check_backbone("model.backbone", self.backbone, "ssd")
        if self.last_map_3x3 and self.extras != "residual":
            raise SettingError(f"model.last_map_3x3: true is for extras=residual, not for extras={self.extras}")
