"""The deployed form of RTMDet; see postprocess."""

import torch
from torch import Tensor, nn

from directdet.models.parts.boxes import clip_boxes, take
from directdet.models.parts.postprocess import best_pairs, pack_detections, select_detections
from directdet.models.rtmdet.network import HasPoints, PointNetwork, RTMDet, boxes_of


class PointDeploy(nn.Module):
    """Base class of the deployed forms of PointNetworks, for one input size.

    All its operations are available in every runtime, so `portable` makes no difference.
    """

    points: Tensor
    limit: Tensor

    def __init__(self, model: PointNetwork, size: tuple[int, int], portable: bool = False):
        super().__init__()
        model.check_size(size)
        self.model, self.size, self.portable = model, tuple(size), portable
        self.register_buffer("points", model.points(size), persistent=False)
        limit = torch.tensor([self.size], dtype=torch.float32, device=self.points.device)
        self.register_buffer("limit", limit, persistent=False)

    def candidates(self, raw: HasPoints) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best (point, class) pairs: boxes [N, K, 4], and scores, labels and points [N, K], best first."""
        logits, index, labels = best_pairs(raw.logits, self.model.config.candidates)
        boxes = boxes_of(take(raw.distances, index), raw.points[index])
        return clip_boxes(boxes, self.limit.expand(logits.shape[0], -1)), torch.sigmoid(logits), labels, index


class RTMDetDeploy(PointDeploy):
    """forward(images [N, 3, H, W]) -> num, boxes, scores, labels; see postprocess."""

    model: RTMDet

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        boxes, scores, labels, _ = self.candidates(self.model(images, self.points))
        return pack_detections(*select_detections(self.model.config, boxes, scores, labels))
