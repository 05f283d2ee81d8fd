"""The deployed forms of Faster and Mask R-CNN; see postprocess."""

import torch
from torch import Tensor

from directdet.models.parts.boxes import best_first, clip_boxes, decode_boxes, take
from directdet.models.parts.masks import MASK_SIZE, masks_of_detections
from directdet.models.parts.postprocess import Looping, log_odds, pack_detections, select_detections
from directdet.models.parts.pyramid import AnchoredDeploy
from directdet.models.parts.roi_pool import PyramidRows
from directdet.models.two_stage.network import BOX_BINS, BOX_WEIGHTS, MASK_BINS, RCNN
from directdet.models.two_stage.rpn import SUPPRESSED, propose


class TwoStageDeploy(Looping, AnchoredDeploy):
    """Base class of the deployed two-stage detectors.

    loops: see `masks_of_detections`.
    """

    def propose(self, images: Tensor) -> tuple[PyramidRows, Tensor, Tensor, Tensor]:
        """Maps to pool from, proposals [N, R, 4], which of them are valid [N, R], and image sizes [N, 2]."""
        config, raw = self.model.config, self.model(images, self.anchors)
        sizes = self.limit.expand(images.shape[0], -1)
        proposals, valid, _ = propose(
            raw, sizes, config.test_pre_nms, config.test_proposals, config.rpn_nms, single_nms=self.portable
        )
        return self.model.rows(raw.features), proposals, valid, sizes

    def pool(self, rows: PyramidRows, boxes: Tensor, bins: int, few: bool = False) -> Tensor:
        """Boxes [N, R, 4] -> [N * R, C, bins, bins]."""
        return self.model.pool_batch(rows, boxes, bins, self.portable, few)

    def best_candidates(self, logits: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best (RoI, class) pairs of logits [N * R, 1 + classes], only for RoIs that are `valid` [N, R].

        Returns their scores, indices into [R * classes], RoIs and labels, each [N, K], best first.
        """
        odds = log_odds(logits).reshape(*valid.shape, -1)[..., 1:]
        classes = odds.shape[2]
        odds = torch.where(valid.unsqueeze(-1), odds, SUPPRESSED).flatten(1)
        # NMS is greedy, so lower candidates never affect which of the best survive. k must not exceed their number.
        odds, index = best_first(odds, min(self.model.config.candidates, odds.shape[1]))
        roi = torch.div(index, classes, rounding_mode="floor")
        return torch.sigmoid(odds), index, roi, index - roi * classes

    def outputs(self, rows: PyramidRows, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Detections [N, K] -> num, boxes, scores, labels and, with masks, masks."""
        outputs = pack_detections(boxes, scores, labels)
        if not self.model.config.masks:
            return outputs

        def masks_of(boxes: Tensor, labels: Tensor) -> Tensor:
            masks = self.mask_probabilities(self.pool(rows, boxes, MASK_BINS, few=self.loops), labels.flatten() + 1)
            return masks.reshape(*labels.shape, MASK_SIZE, MASK_SIZE)

        return (*outputs, masks_of_detections(masks_of, scores, (boxes, labels), self.loops))

    def mask_probabilities(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Pooled boxes [K, C, 14, 14] and labels [K] (1..classes) -> mask probabilities [K, 28, 28]."""
        raise NotImplementedError


class RCNNDeploy(TwoStageDeploy):
    """forward(images [N, 3, H, W]) -> num, boxes, scores, labels and, with masks, masks; see postprocess."""

    model: RCNN

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        rows, proposals, valid, sizes = self.propose(images)
        logits, deltas = self.model.predict_boxes(self.pool(rows, proposals, BOX_BINS))
        boxes, scores, labels = self._select(proposals, valid, logits, deltas, sizes)
        return self.outputs(rows, boxes, scores, labels)

    def _select(
        self, proposals: Tensor, valid: Tensor, logits: Tensor, deltas: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Head outputs of proposals [N, R, 4] -> boxes [N, K, 4], scores [N, K], labels [N, K], best first."""
        images, count, classes = *proposals.shape[:2], self.model.config.num_classes
        scores, index, roi, labels = self.best_candidates(logits, valid)
        deltas = deltas.reshape(images, count, classes + 1, 4)[:, :, 1:].reshape(images, -1, 4)
        boxes = clip_boxes(decode_boxes(take(deltas, index), take(proposals, roi), BOX_WEIGHTS), sizes)
        return select_detections(self.model.config, boxes, scores, labels)

    def mask_probabilities(self, pooled: Tensor, labels: Tensor) -> Tensor:
        return torch.sigmoid(self.model.predict_masks(pooled, labels))
