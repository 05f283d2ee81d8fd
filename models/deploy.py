"""The graph that is deployed: network and post-processing for one input size, from pixels to so many detections.

Evaluation while training runs this same module. Its operations have static shapes and need no plugin: no
NonMaxSuppression, RoiAlign, NonZero, If or Loop.
"""

import torch
from torch import Tensor, nn

from .boxes import clip_boxes, decode_boxes, is_larger_than, nms_mask, take
from .rcnn import BOX_BINS, BOX_WEIGHTS, MASK_BINS, MASK_SIZE, RCNN, RCNNConfig
from .rcnn_proposals import propose
from .roi_pool import pool_rois

MIN_SIDE = 1e-2  # pixels; smaller detections are dropped, as in torchvision
OUTPUTS = ("num", "boxes", "scores", "labels", "masks")


def output_names(config: RCNNConfig) -> tuple[str, ...]:
    """Names of what Deploy returns for a network of this configuration, in order."""
    return OUTPUTS if config.masks else OUTPUTS[:-1]


class Deploy(nn.Module):
    """Detections of normalised images [N, 3, H, W], H and W multiples of 32, for one (H, W).

    forward -> num [N, 1] int32 and, for K = config.detections (or fewer if there are not so many candidates), boxes
    [N, K, 4] in pixels of the canvas, scores [N, K], labels [N, K] int32 (0..C-1) and, with masks, masks
    [N, K, 28, 28], probabilities inside each box. Best first; rows from num on are zero. `portable` is the
    form for export: RoI pooling and NMS in operations that every runtime has, instead of the fastest in PyTorch.
    """

    def __init__(self, model: RCNN, size: tuple[int, int], portable: bool = False):
        super().__init__()
        if size[0] % 32 or size[1] % 32:
            raise ValueError(f"height and width must be multiples of 32, not {size[0]} and {size[1]}")
        self.model, self.size, self.portable = model, size, portable
        device = next(model.parameters()).device
        shapes = [(size[0] // s, size[1] // s) for s in model.strides[:-1]]
        shapes.append(((shapes[-1][0] + 1) // 2, (shapes[-1][1] + 1) // 2))  # the last level pools with stride 2
        self.register_buffer("anchors", model.anchors(shapes), persistent=False)
        limit = torch.tensor([size], dtype=torch.float32, device=device)
        self.register_buffer("limit", limit, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        config = self.model.config
        raw = self.model(images, self.anchors)
        sizes = self.limit.expand(images.shape[0], -1)
        proposals, real = propose(
            raw, sizes, config.test_pre_nms, config.test_proposals, config.rpn_nms, one_graph=self.portable
        )
        logits, deltas = self.model.boxes_of(self._pool(raw.features, proposals, BOX_BINS))
        boxes, scores, labels = self._choose(proposals, real, logits, deltas, sizes)
        real = scores > 0
        outputs = (real.sum(1, keepdim=True, dtype=torch.int32), boxes, scores, labels.to(torch.int32))
        if not config.masks:
            return outputs
        pooled = self._pool(raw.features, boxes, MASK_BINS)
        masks = torch.sigmoid(self.model.masks_of(pooled, labels.flatten() + 1))
        masks = masks.reshape(*labels.shape, MASK_SIZE, MASK_SIZE)
        return (*outputs, masks * real[..., None, None])

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
        valid = (scores > config.score_threshold) & is_larger_than(boxes, MIN_SIDE)
        keep = nms_mask(boxes, valid, config.nms, labels)
        scores, index = torch.topk(torch.where(keep, scores, -1.0), min(config.detections, scores.shape[1]), dim=1)
        chosen = scores > 0
        boxes = take(boxes, index) * chosen.unsqueeze(-1)
        return boxes, scores.clamp(min=0), torch.where(chosen, take(labels, index), 0)

    def _pool(self, features: list[Tensor], boxes: Tensor, bins: int) -> Tensor:
        """Boxes [N, R, 4] -> [N * R, C, bins, bins]."""
        image = torch.arange(boxes.shape[0], device=boxes.device).repeat_interleave(boxes.shape[1])
        return pool_rois(features[:4], self.model.strides[:4], boxes.reshape(-1, 4), image, bins, self.portable)
