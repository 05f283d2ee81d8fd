"""The deployed form of RTMDet; see postprocess."""

import torch
from torch import Tensor, nn

from directdet.models.parts.boxes import clip_boxes, take
from directdet.models.parts.postprocess import best_pairs, pack_detections, select_detections
from directdet.models.rtmdet.network import RTMDet, boxes_of


class RTMDetDeploy(nn.Module):
    """forward(images [N, 3, H, W]) -> num, boxes, scores, labels; see postprocess.

    All its operations are available in every runtime, so `portable` makes no difference.
    """

    points: Tensor
    limit: Tensor

    def __init__(self, model: RTMDet, size: tuple[int, int], portable: bool = False):
        super().__init__()
        model.check_size(size)
        self.model, self.size, self.portable = model, tuple(size), portable
        self.register_buffer("points", model.points(size), persistent=False)
        limit = torch.tensor([self.size], dtype=torch.float32, device=self.points.device)
        self.register_buffer("limit", limit, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        config, raw = self.model.config, self.model(images, self.points)
        logits, index, labels = best_pairs(raw.logits, config.candidates)
        boxes = boxes_of(take(raw.distances, index), raw.points[index])
        boxes = clip_boxes(boxes, self.limit.expand(images.shape[0], -1))
        return pack_detections(*select_detections(config, boxes, torch.sigmoid(logits), labels))
