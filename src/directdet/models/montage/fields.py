"""The effective receptive fields of a backbone's cells, and the shares of labels that follow from them.

Zhou et al., ECCV 2020 (arXiv 2004.12178), section 3.3 and equation 2. The paper does not say how a field is measured.
Ours is the gradient, as in Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural
Networks", NIPS 2016 (arXiv 1701.04128).
"""

import torch
from torch import Tensor

from directdet.models.montage.network import MontageNet, inside

OWN = 0.7  # section 4.1: tau, the least share of the label of a cell's own region


def field_shares(model: MontageNet, images: Tensor) -> Tensor:
    """How much of the effective receptive field of each cell lies in each region, summed over images.

    The field of a cell is the absolute gradient of the sum of its features by the pixels, added up over the channels.
    The network is run as it is evaluated, so that the field of an image does not depend on the others.

    Args:
        images: [N, C, H, W], normalised.

    Returns:
        float32 [4, H/s, W/s], sums of the fields inside each region, not normalised.
    """
    training = model.training
    model.eval()
    with torch.enable_grad():
        pixels = images.detach().float().requires_grad_()
        features = model.features(pixels).sum((0, 1))
        masks = inside(model.regions, torch.arange(images.shape[-1], device=images.device) + 0.5).float()
        sums = []
        for cell in features.flatten():
            (gradient,) = torch.autograd.grad(cell, pixels, retain_graph=True)
            sums.append((gradient.abs().sum((0, 1)) * masks).sum((1, 2)))
    model.train(training)
    return torch.stack(sums, 1).view(-1, *features.shape)


def label_shares(fields: Tensor, cells: Tensor, own: float = OWN) -> Tensor:
    """Equation 2: the share of each region's label in the target of each cell.

    Args:
        fields: [R, h, w], how much of each cell's field lies in each region.
        cells: bool [R, h, w], which cells belong to each region.
        own: the least share of the label of the region that a cell belongs to.

    Returns:
        [R, h, w], which sum to 1 over the regions; a cell without a field has its own label alone.
    """
    shares = fields / fields.sum(0)
    least = shares.clamp(min=own)
    mine = (least * cells).sum(0)
    others = fields.masked_fill(cells, 0)
    whole = others.sum(0)
    rest = others / whole * (1 - mine)
    return torch.where(whole > 0, torch.where(cells, least, rest), cells.to(fields.dtype))
