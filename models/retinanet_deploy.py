"""RetinaNet as deployed; see postprocess."""

import torch
from torch import Tensor, nn

from .boxes import clip_boxes, decode_boxes, take
from .postprocess import choose, packed
from .pyramid import RawMaps, check_size, map_shapes
from .retinanet import RetinaNet
from .retinanet_loss import DELTA_WEIGHTS


class RetinaNetDeploy(nn.Module):
    """forward(images [N, 3, H, W]) -> num, boxes, scores, labels; see postprocess.

    Every runtime has its operations, so `portable` changes nothing.
    """

    def __init__(self, model: RetinaNet, size: tuple[int, int], portable: bool = False):
        super().__init__()
        check_size(size)
        self.model, self.size, self.portable = model, size, portable
        device = next(model.parameters()).device
        self.register_buffer("anchors", model.anchors(map_shapes(size, model.strides)), persistent=False)
        limit = torch.tensor([size], dtype=torch.float32, device=device)
        self.register_buffer("limit", limit, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        raw = self.model(images, self.anchors)
        logits, index, labels = self._candidates(raw)
        boxes = decode_boxes(take(raw.deltas, index), raw.anchors[index], DELTA_WEIGHTS)
        boxes = clip_boxes(boxes, self.limit.expand(images.shape[0], -1))
        return packed(*choose(self.model.config, boxes, torch.sigmoid(logits), labels))

    def _candidates(self, raw: RawMaps) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, anchors' indices and labels [N, K] of the best pairs of each level, then of all, best first."""
        config, found, start = self.model.config, [], 0
        for number in raw.level_sizes:
            logits, index, labels = best_pairs(raw.logits[:, start : start + number], config.test_pre_nms)
            found.append((logits, index + start, labels))
            start += number
        logits, index, labels = (torch.cat(values, 1) for values in zip(*found, strict=True))
        # NMS is greedy, so the best candidates decide alone about the best survivors; k must fit what there is.
        logits, chosen = torch.topk(logits, min(config.candidates, logits.shape[1]), dim=1)
        return logits, take(index, chosen), take(labels, chosen)


def best_pairs(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best (anchor, class) pairs of logits [N, A, C]: their logits, anchors and classes [N, K], best first.

    K is `count`, or A * C if there are no more pairs. Ranked by logit, not by probability: confident ones all round
    to 1. The best `count` pairs lie within the `count` anchors of the best single pairs, so that two small top-k do
    for a large one (80 classes at 800x1344: twelve million pairs). That also keeps the pairs' numbers where the
    division is exact: exported, it is one of float32.
    """
    anchors, classes = logits.shape[1:]
    _, index = torch.topk(logits.amax(-1), min(count, anchors), dim=1)
    logits, pair = torch.topk(take(logits, index).flatten(1), min(count, index.shape[1] * classes), dim=1)
    row = torch.div(pair, classes, rounding_mode="floor")
    return logits, take(index, row), pair - row * classes
