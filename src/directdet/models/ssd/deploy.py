"""The deployed form of SSD; see postprocess."""

import torch
from torch import Tensor

from directdet.models.parts.boxes import areas, best_first, clip_boxes, decode_boxes, pairwise_intersection, take
from directdet.models.parts.postprocess import Looping, best_pairs, log_odds, pack_detections, select_detections
from directdet.models.ssd.config import SSDConfig
from directdet.models.ssd.loss import DELTA_WEIGHTS
from directdet.models.ssd.network import SSD

MAX_PAIRS = 3840  # (prior, class) pairs considered: the largest k of TensorRT's top-k
ROUNDS = 3  # of NMS
AT_A_TIME = 40  # detections that candidates are compared with together where a graph loops, to stay in the cache


class SSDDeploy(Looping):
    """forward(images [N, 3, size, size]) -> num, boxes, scores, labels; see postprocess.

    All its operations are available in every runtime, so `portable` makes no difference. loops: see select_in_rounds.
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
        odds, index, labels = best_pairs(log_odds(raw.logits)[..., 1:], MAX_PAIRS)
        boxes = decode_boxes(take(raw.deltas, index), raw.anchors[index], DELTA_WEIGHTS)
        boxes = clip_boxes(boxes, self.limit.expand(images.shape[0], -1))
        found = select_in_rounds(self.model.config, boxes, torch.sigmoid(odds), labels, self.loops)
        return pack_detections(*found)


def select_in_rounds(
    config: SSDConfig, boxes: Tensor, scores: Tensor, labels: Tensor, loops: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """postprocess.select_detections for many candidates [N, M], most of them on few objects, at the cost of few.

    A confident object covers hundreds of priors, so all of the best `candidates` may lie on a single object. (The
    papers' code runs NMS per class, over 400 candidates each.) So this runs NMS over the best `candidates`, removes all
    remaining candidates that the survivors suppress, continues with the best of the rest, and so on for ROUNDS rounds.
    As NMS is greedy, the result is exact if `detections` boxes survive or no candidate above the threshold remains.

    An exported graph that `loops` compares the candidates with as many survivors as there are, others with room for
    `detections` of them: a GPU would wait for each turn.
    """
    found = []
    for number in range(1, ROUNDS + 1):
        best = min(config.candidates, scores.shape[1])
        chosen = select_detections(config, boxes[:, :best], scores[:, :best], labels[:, :best])
        found.append(chosen)
        boxes, scores, labels = boxes[:, best:], scores[:, best:], labels[:, best:]
        if number == ROUNDS or not scores.shape[1]:
            break
        scores = torch.where(_covered(config, chosen, boxes, labels, loops), 0.0, scores)
        # The last round needs only its own candidates, earlier rounds also those of the rounds after them.
        count = min(config.candidates, scores.shape[1]) if number + 1 == ROUNDS else scores.shape[1]
        # Best first, equal ones by index: those that remain keep their order, the confident, which are all 1, too.
        scores, index = best_first(scores, count)
        boxes, labels = take(boxes, index), take(labels, index)
    boxes, scores, labels = (torch.cat(values, 1) for values in zip(*found, strict=True))
    scores, index = best_first(scores, min(config.detections, scores.shape[1]))
    return take(boxes, index), scores, take(labels, index)


def _covered(
    config: SSDConfig, chosen: tuple[Tensor, Tensor, Tensor], boxes: Tensor, labels: Tensor, loops: bool
) -> Tensor:
    """Which of boxes [N, M, 4] are suppressed by a chosen detection of the same class -> [N, M].

    chosen: boxes [N, K, 4], scores and labels [N, K], best first; zero rows suppress nothing.
    """

    def excess(own: Tensor, own_labels: Tensor) -> Tensor:
        # IoU > t is computed as intersection * (1 + t) - t * area > t * other area: fewer operations on [N, K, M] than
        # IoU. And amax instead of any(), which would be exported as a maximum over int64.
        values = pairwise_intersection(own, boxes) * (1 + config.nms) - config.nms * areas(own).unsqueeze(2)
        if config.num_classes > 1:
            values = torch.where(own_labels[:, :, None] == labels[:, None], values, -1.0)
        return values.amax(1)

    own, scores, own_labels = chosen
    if not (loops and torch.compiler.is_exporting()):
        return excess(own, own_labels) > config.nms * areas(boxes)
    used, last = (scores > 0).sum(1).amax(0), scores.shape[1] - 1

    def body(start: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
        column = (start + torch.arange(AT_A_TIME, device=start.device)).clamp(max=last)
        more = excess(own.index_select(1, column), own_labels.index_select(1, column))
        return start + AT_A_TIME, torch.maximum(most, more)

    first = torch.zeros((), dtype=torch.int64, device=used.device)
    _, most = torch.while_loop(lambda start, most: start < used, body, (first, torch.zeros_like(boxes[..., 0])))
    return most > config.nms * areas(boxes)
