"""The deployed form of RTMDet-Ins; see postprocess."""

import torch
from torch import Tensor

from directdet.models.parts.boxes import take
from directdet.models.parts.masks import MASK_SIZE
from directdet.models.parts.postprocess import pack_detections, select_rows
from directdet.models.rtmdet.deploy import PointDeploy
from directdet.models.rtmdet_ins.masks import grid, mask_logits
from directdet.models.rtmdet_ins.network import RTMDetIns


class RTMDetInsDeploy(PointDeploy):
    """forward(images [N, 3, H, W]) -> num, boxes, scores, labels, masks; see postprocess.

    Masks are computed after NMS, for the detections that are left, at 28x28 points of each box.
    """

    model: RTMDetIns

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        raw = self.model(images, self.points)
        boxes, scores, labels, index = self.candidates(raw)
        boxes, scores, labels, row = select_rows(self.model.config, boxes, scores, labels)
        index = take(index, row)
        x, y = grid(boxes, MASK_SIZE)
        kernels, stride = take(raw.kernels, index), self.model.strides[0]
        masks = torch.sigmoid(mask_logits(raw.prototypes, stride, kernels, raw.points[index], x, y))
        return (*pack_detections(boxes, scores, labels), masks * (scores > 0)[..., None, None])
