"""SSD as deployed; see postprocess."""

import torch
from torch import Tensor, nn

from directdet.models.parts.boxes import areas, clip_boxes, decode_boxes, pairwise_intersection, take
from directdet.models.parts.postprocess import best_pairs, choose, packed
from directdet.models.ssd.config import SSDConfig
from directdet.models.ssd.loss import DELTA_WEIGHTS
from directdet.models.ssd.network import SSD

POOL = 3840  # (prior, class) pairs that are looked at: the most that TensorRT's top-k gives
ROUNDS = 3


class SSDDeploy(nn.Module):
    """forward(images [N, 3, size, size]) -> num, boxes, scores, labels; see postprocess.

    Every runtime has its operations, so `portable` changes nothing.
    """

    limit: Tensor

    def __init__(self, model: SSD, size: tuple[int, int], portable: bool = False):
        super().__init__()
        model.check_size(size)
        self.model, self.size, self.portable = model, tuple(size), portable
        limit = torch.tensor([self.size], dtype=torch.float32, device=model.priors.device)
        self.register_buffer("limit", limit, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        raw = self.model(images, self.model.priors)
        scores, index, labels = best_pairs(torch.softmax(raw.logits, -1)[..., 1:], POOL)
        boxes = decode_boxes(take(raw.deltas, index), raw.anchors[index], DELTA_WEIGHTS)
        boxes = clip_boxes(boxes, self.limit.expand(images.shape[0], -1))
        return packed(*choose_in_rounds(self.model.config, boxes, scores, labels))


def choose_in_rounds(config: SSDConfig, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """postprocess.choose for many candidates [N, M] of which most lie on few objects, at the price of few.

    A sure object covers hundreds of priors, and the best `candidates` may lie on no other. (The papers' code takes 400
    of every class, and runs NMS for each.) So NMS runs over the best `candidates`, what its survivors cover is taken
    out of the rest, the best of what is left follow, and so for ROUNDS rounds. NMS is greedy: this is exact, if
    `detections` survive or nothing above the threshold is left in the end.
    """
    found = []
    for number in range(1, ROUNDS + 1):
        best = min(config.candidates, scores.shape[1])
        chosen = choose(config, boxes[:, :best], scores[:, :best], labels[:, :best])
        found.append(chosen)
        boxes, scores, labels = boxes[:, best:], scores[:, best:], labels[:, best:]
        if number == ROUNDS or not scores.shape[1]:
            break
        scores = torch.where(_covered(config, chosen[0], chosen[2], boxes, labels), 0.0, scores)
        # The last round needs its candidates alone, those before it also what is left over.
        wanted = min(config.candidates, scores.shape[1]) if number + 1 == ROUNDS else scores.shape[1]
        scores, index = torch.topk(scores, wanted, dim=1)
        boxes, labels = take(boxes, index), take(labels, index)
    boxes, scores, labels = (torch.cat(values, 1) for values in zip(*found, strict=True))
    scores, index = torch.topk(scores, min(config.detections, scores.shape[1]), dim=1)
    return take(boxes, index), scores, take(labels, index)


def _covered(config: SSDConfig, boxes: Tensor, labels: Tensor, others: Tensor, their_labels: Tensor) -> Tensor:
    """Which of `others` [N, M, 4] a detection [N, K] of their class suppresses -> [N, M]. Empty rows cover nothing."""
    # IoU > t is intersection * (1 + t) - t * area > t * their area: fewer operations on [N, K, M] than IoU takes.
    # And a maximum instead of "any", which is exported as one of int64.
    intersection = pairwise_intersection(boxes, others)
    excess = intersection * (1 + config.nms) - config.nms * areas(boxes).unsqueeze(2)
    if config.num_classes > 1:
        excess = torch.where(labels[:, :, None] == their_labels[:, None], excess, -1.0)
    return excess.amax(1) > config.nms * areas(others)
