"""The deployed form of RetinaNet; see postprocess."""

import torch
from torch import Tensor

from directdet.models.parts.boxes import best_first, clip_boxes, decode_boxes, take
from directdet.models.parts.postprocess import best_pairs, pack_detections, select_detections
from directdet.models.parts.pyramid import AnchoredDeploy, RawMaps
from directdet.models.retinanet.loss import DELTA_WEIGHTS
from directdet.models.retinanet.network import RetinaNet


class RetinaNetDeploy(AnchoredDeploy):
    """forward(images [N, 3, H, W]) -> num, boxes, scores, labels; see postprocess.

    All its operations are available in every runtime, so `portable` makes no difference.
    """

    model: RetinaNet

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        raw = self.model(images, self.anchors)
        logits, index, labels = self._candidates(raw)
        boxes = decode_boxes(take(raw.deltas, index), raw.anchors[index], DELTA_WEIGHTS)
        boxes = clip_boxes(boxes, self.limit.expand(images.shape[0], -1))
        return pack_detections(*select_detections(self.model.config, boxes, torch.sigmoid(logits), labels))

    def _candidates(self, raw: RawMaps) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, anchor indices and labels [N, K] of the best pairs: top-k per level, then over all levels."""
        config, found, start = self.model.config, [], 0
        for number in raw.level_sizes:
            logits, index, labels = best_pairs(raw.logits[:, start : start + number], config.test_pre_nms)
            found.append((logits, index + start, labels))
            start += number
        logits, index, labels = (torch.cat(values, 1) for values in zip(*found, strict=True))
        # NMS is greedy, so lower candidates never affect which of the best survive. k must not exceed their number.
        logits, chosen = best_first(logits, min(config.candidates, logits.shape[1]))
        return logits, take(index, chosen), take(labels, chosen)
