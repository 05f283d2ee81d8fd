"""Faster and Mask R-CNN as deployed; see postprocess."""

import torch
from torch import Tensor

from directdet.models.parts.boxes import clip_boxes, decode_boxes, take
from directdet.models.parts.postprocess import choose, packed
from directdet.models.parts.pyramid import AnchoredDeploy
from directdet.models.two_stage.network import BOX_BINS, BOX_WEIGHTS, MASK_BINS, MASK_SIZE, RCNN
from directdet.models.two_stage.rpn import propose


class TwoStageDeploy(AnchoredDeploy):
    """What deployed two-stage detectors share."""

    def propose(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """Features, proposals [N, R, 4], which of them are real [N, R], and image sizes [N, 2]."""
        config, raw = self.model.config, self.model(images, self.anchors)
        sizes = self.limit.expand(images.shape[0], -1)
        proposals, real = propose(
            raw, sizes, config.test_pre_nms, config.test_proposals, config.rpn_nms, one_graph=self.portable
        )
        return raw.features, proposals, real, sizes

    def pool(self, features: list[Tensor], boxes: Tensor, bins: int) -> Tensor:
        """Boxes [N, R, 4] -> [N * R, C, bins, bins]."""
        image = torch.arange(boxes.shape[0], device=boxes.device).repeat_interleave(boxes.shape[1])
        return self.model.pool(features, boxes.reshape(-1, 4), image, bins, self.portable)


class RCNNDeploy(TwoStageDeploy):
    """forward(images [N, 3, H, W]) -> num, boxes, scores, labels and, with masks, masks; see postprocess."""

    model: RCNN

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features, proposals, real, sizes = self.propose(images)
        logits, deltas = self.model.boxes_of(self.pool(features, proposals, BOX_BINS))
        boxes, scores, labels = self._choose(proposals, real, logits, deltas, sizes)
        outputs = packed(boxes, scores, labels)
        if not self.model.config.masks:
            return outputs
        masks = torch.sigmoid(self.model.masks_of(self.pool(features, boxes, MASK_BINS), labels.flatten() + 1))
        masks = masks.reshape(*labels.shape, MASK_SIZE, MASK_SIZE)
        return (*outputs, masks * (scores > 0)[..., None, None])

    def _choose(
        self, proposals: Tensor, real: Tensor, logits: Tensor, deltas: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Head outputs of proposals [N, R, 4] -> boxes [N, K, 4], scores [N, K], labels [N, K], best first."""
        config = self.model.config
        images, number, classes = *proposals.shape[:2], config.num_classes
        scores = torch.softmax(logits, -1).reshape(images, number, classes + 1)[..., 1:]
        scores = (scores * real.unsqueeze(-1).to(scores.dtype)).flatten(1)
        # NMS is greedy, so the best candidates decide alone about the best survivors; k must fit what there is.
        scores, index = torch.topk(scores, min(config.candidates, number * classes), dim=1)
        roi = torch.div(index, classes, rounding_mode="floor")
        labels = index - roi * classes
        deltas = deltas.reshape(images, number, classes + 1, 4)[:, :, 1:].reshape(images, -1, 4)
        boxes = clip_boxes(decode_boxes(take(deltas, index), take(proposals, roi), BOX_WEIGHTS), sizes)
        return choose(config, boxes, scores, labels)
