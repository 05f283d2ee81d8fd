"""The loss of Montage pre-training: the class of every cell, in shares that follow its effective receptive field."""

from torch import Tensor
from torch.nn import functional as F

from directdet.models.montage.network import MontageNet
from directdet.models.parts.targets import Targets


def montage_losses(model: MontageNet, logits: Tensor, targets: Targets) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Zhou et al., ECCV 2020 (arXiv 2004.12178), equation 1: the cross entropy with shared labels.

    It is the mean over the cells of each region, then over the regions, however large they are, and over the images. A
    region's mean is multiplied by the weight of its sample, if samples have weights.

    Args:
        logits: [N, classes + 1, h, w], of the model.
        targets: labels [N, >= 4] of the samples in the order of the regions, and their weights.

    Returns:
        {"classification": the loss}, and the count of "positives": samples that are not background.
    """
    labels = targets.labels[:, :4]
    chances = F.log_softmax(logits.float(), 1)
    count, _, height, width = logits.shape
    of_labels = chances.gather(1, labels[:, :, None, None].expand(count, 4, height, width))
    entropy = -(model.label_weights * of_labels).sum(1, keepdim=True)  # [N, 1, h, w]
    by_region = (entropy * model.cells).sum((2, 3)) / model.cells.sum((1, 2))  # [N, 4]
    if targets.weights is not None:
        by_region = by_region * targets.weights[:, :4]
    return {"classification": by_region.mean()}, {"positives": (labels < logits.shape[1] - 1).sum()}
