"""The deployed form of RTMDet-Ins; see postprocess."""

import torch
from torch import Tensor

from directdet.models.parts.boxes import take
from directdet.models.parts.masks import MASK_SIZE, masks_of_detections
from directdet.models.parts.postprocess import Looping, pack_detections, select_rows
from directdet.models.rtmdet.deploy import PointDeploy
from directdet.models.rtmdet_ins.masks import grid, mask_logits
from directdet.models.rtmdet_ins.network import RTMDetIns


class RTMDetInsDeploy(Looping, PointDeploy):
    """forward(images [N, 3, H, W]) -> num, boxes, scores, labels, masks; see postprocess.

    Masks are computed after NMS, for the detections that are left, at 28x28 points of each box. loops: see
    `masks_of_detections`.
    """

    model: RTMDetIns

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        raw = self.model(images, self.points)
        boxes, scores, labels, index = self.candidates(raw)
        boxes, scores, labels, row = select_rows(self.model.config, boxes, scores, labels)

        index = take(index, row)

        def masks_of(boxes: Tensor, kernels: Tensor, points: Tensor) -> Tensor:
            x, y = grid(boxes, MASK_SIZE)
            return torch.sigmoid(mask_logits(raw.prototypes, self.model.strides[0], kernels, points, x, y))

        seen = (boxes, take(raw.kernels, index), raw.points[index])
        masks = masks_of_detections(masks_of, scores, seen, self.loops)
        return (*pack_detections(boxes, scores, labels), masks)
