"""The exponential moving average of the weights, which is evaluated and exported instead of the last weights."""

import copy
import math

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from directdet.models.parts.network import Network


class WeightAverage:
    """A second network whose weights and statistics follow those of the network in training.

    After step n (from 1) each value moves by 1 - d towards the trained one, d = decay * (1 - exp(-n / warmup)): in the
    beginning the average forgets quickly, since the first weights are random (the rule of the YOLO and RTMDet code).
    Buffers that count are copied. The average depends on nothing but the steps, so a resumed run continues it exactly.

    Args:
        model: in training, on its device.
        decay: what remains of the average in one step, in the long run.
        warmup: steps in which the decay reaches 63 % of that; 0: from the first step on.
    """

    def __init__(self, model: Network, decay: float, warmup: int):
        self.decay, self.warmup = decay, warmup
        copies: dict[int, Tensor] = {}  # not left to deepcopy, which cannot copy fake tensors
        for value in [*model.parameters(), *model.buffers()]:
            clone = value.detach().clone()
            copies[id(value)] = nn.Parameter(clone, False) if isinstance(value, nn.Parameter) else clone
        self.model: Network = copy.deepcopy(model, dict(copies))
        pairs = list(zip(self.values(), [*model.parameters(), *model.buffers()], strict=True))
        self._moving = [(own, other) for own, other in pairs if own.is_floating_point()]
        self._counting = [(own, other) for own, other in pairs if not own.is_floating_point()]

    def decay_at(self, step: int) -> float:
        """The decay of step `step`, counted from 1."""
        return self.decay * (1 - math.exp(-step / self.warmup)) if self.warmup else self.decay

    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 1."""
        own, trained = ([pair[index] for pair in self._moving] for index in (0, 1))
        get_ema_multi_avg_fn(self.decay_at(step))(own, trained, None)
        for count, other in self._counting:
            count.copy_(other)

    def values(self) -> list[Tensor]:
        """All tensors of the average."""
        return [*self.model.parameters(), *self.model.buffers()]
