"""Optimisation steps of Montage pre-training, in which the labels of cells follow their receptive fields."""

from collections.abc import Sequence

from directdet.models.montage.fields import field_shares, label_shares
from directdet.models.montage.network import MontageNet
from directdet.models.parts.network import Network
from directdet.recipes.recipe import Phase
from directdet.train import distributed
from directdet.train.step import Batch, Losses, Stepper, normalise

FIELD_IMAGES = 4  # ours: of each process, over which the receptive fields are measured


def stepper_of(model: Network) -> type[Stepper]:
    """What trains a network."""
    return MontageStepper if isinstance(model, MontageNet) else Stepper


def montage_period(phase: Phase, steps_per_epoch: int) -> int:
    """Steps between two measurements of the receptive fields: the paper's 5000 of 64,000, in proportion."""
    return max(1, round((phase.iterations or steps_per_epoch * phase.epochs) * 5 / 64))


class MontageStepper(Stepper):
    """A :class:`Stepper` that measures the receptive fields now and then.

    Its losses are means over images, of which all batches of a step have the same number, so that they share no counts.
    """

    model: MontageNet
    unused = True  # one map of a backbone is taken, whose other maps may have layers of their own
    shares_counts = False

    def step(self, batches: Sequence[Batch], number: int, steps_per_epoch: int) -> Losses:
        """See :meth:`Stepper.step`."""
        if number % montage_period(self.phase, steps_per_epoch) == 0:
            self._measure_fields(batches[0])
        return super().step(batches, number, steps_per_epoch)

    def _measure_fields(self, batch: Batch) -> None:
        """Have the labels of the cells follow their receptive fields, as they are on these pictures."""
        images, sizes = (values[:FIELD_IMAGES].to(self.device) for values in (batch[0], batch[1]["sizes"]))
        fields = field_shares(self.model, normalise(images, sizes, self._own.mean, self._own.std))
        self.model.label_weights.copy_(label_shares(distributed.mean(fields), self.model.cells))
