"""Montage's network: receptive fields, the labels that follow from them, and the loss, each computed another way."""

import numpy as np
import pytest
import torch
from slim_models import mask_rcnn
from torch import nn

from directdet.data.montage.assemble import regions
from directdet.models.backbones.backbone import Backbone
from directdet.models.montage.fields import field_shares, label_shares
from directdet.models.montage.loss import montage_losses
from directdet.models.montage.network import MontageNet
from directdet.models.parts.targets import Targets

SIDE = 128


def net(backbone: Backbone, side: int = SIDE, classes: int = 3) -> MontageNet:
    config = mask_rcnn(num_classes=classes).config
    return MontageNet(config, backbone, torch.from_numpy(regions(side)), side)


class Linear(Backbone):
    """One convolution that looks beyond its cell, so that its fields are its own weights."""

    def __init__(self, kernel: int = 96):
        super().__init__()
        self.channels, self.strides = {"c2": 1, "c5": 2}, {"c2": 4, "c5": 32}
        self.conv = nn.Conv2d(3, 2, kernel, stride=32, padding=(kernel - 32) // 2)
        self.kernel = kernel

    def forward(self, images):
        return {"c2": images[:, :1, ::4, ::4], "c5": self.conv(images)}


def test_the_map_is_the_coarsest_and_cells_belong_to_the_region_of_their_centre():
    torch.manual_seed(0)
    model = net(Linear())
    assert model(torch.randn(2, 3, SIDE, SIDE)).shape == (2, 4, 4, 4)
    # 128 pixels: the small square has 32 of them, one of four cells.
    numbers = (model.cells * torch.arange(4)[:, None, None]).sum(0)
    assert numbers.tolist() == [[0, 1, 1, 1], [2, 3, 3, 3], [2, 3, 3, 3], [2, 3, 3, 3]]
    assert (model.cells.sum(0) == 1).all() and torch.equal(model.label_weights, model.cells.float())


@pytest.mark.parametrize("side", [64, 96, 224, 448])
def test_every_region_has_cells(side):
    for backbone in (Linear(), mask_rcnn(num_classes=3).backbone):
        assert (net(backbone, side).cells.sum((1, 2)) >= 1).all()


def test_fields_of_a_convolution_are_its_weights():
    """Cell by cell and pixel by pixel in numpy, with the border cut off."""
    torch.manual_seed(1)
    model = net(Linear())
    found = field_shares(model, torch.randn(2, 3, SIDE, SIDE))
    kernel = model.backbone.conv.weight.detach().double().numpy().sum(0)  # of the sum of the features
    weights, reach, wanted = np.abs(kernel).sum(0), model.backbone.kernel, np.zeros((4, 4, 4))
    for row in range(4):
        for column in range(4):
            top, left = 32 * row - (reach - 32) // 2, 32 * column - (reach - 32) // 2
            for number, (x1, y1, x2, y2) in enumerate(regions(SIDE)):
                y, x = np.arange(reach) + top, np.arange(reach) + left
                part = weights[(y >= y1) & (y < y2)][:, (x >= x1) & (x < x2)]
                wanted[number, row, column] = 2 * part.sum()  # of two pictures
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4)


def test_a_field_is_of_the_picture_alone_and_changes_nothing():
    """Of a network with batch normalisation, as it is trained: in evaluation mode, without gradients of weights."""
    torch.manual_seed(2)
    model = net(mask_rcnn(num_classes=3).backbone).train()
    images = torch.randn(3, 3, SIDE, SIDE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    together, alone = field_shares(model, images), sum(field_shares(model, images[k : k + 1]) for k in range(3))
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-6)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_fields_of_a_network_against_small_changes_of_pixels():
    """The change of a cell's features with one pixel, in double precision, for pixels of every region."""
    torch.manual_seed(3)
    model = net(mask_rcnn(num_classes=3).backbone, 64).eval()
    images = torch.randn(1, 3, 64, 64)
    # Only the pixels of a coarse grid let the network see: the fields are then sums over these.
    rows, columns = torch.meshgrid(torch.arange(3, 64, 13), torch.arange(5, 64, 13), indexing="ij")
    mask = torch.zeros(64, 64)
    mask[rows, columns] = 1

    class Masked(Backbone):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.channels, self.strides = inner, inner.channels, inner.strides

        def forward(self, images):
            return self.inner(images * mask.to(images))

    masked = MontageNet(model.config, Masked(model.backbone), model.regions, 64).eval()
    found = field_shares(masked, images)
    wanted, exact, step = np.zeros((4, 2, 2)), masked.double(), 1e-6
    with torch.no_grad():
        for row, column in zip(rows.flatten().tolist(), columns.flatten().tolist(), strict=True):
            (number,) = [k for k, (x1, y1, x2, y2) in enumerate(regions(64)) if x1 <= column < x2 and y1 <= row < y2]
            for channel in range(3):
                change = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
                change[0, channel, row, column] = step
                up, down = (exact.features(images.double() + sign * change).sum((0, 1)) for sign in (1, -1))
                wanted[number] += ((up - down).abs() / (2 * step)).numpy()
    assert (wanted > 0).all()
    np.testing.assert_allclose(found.numpy(), wanted, rtol=2e-3)


def equation_2(fields: np.ndarray, cells: np.ndarray, tau: float) -> np.ndarray:
    """The paper's equation, region by region and cell by cell."""
    wanted = np.zeros(fields.shape)
    for j in range(fields.shape[1]):
        for k in range(fields.shape[2]):
            g, r = fields[:, j, k], int(cells[:, j, k].argmax())
            wanted[r, j, k] = max(tau, g[r] / g.sum())
            for i in range(4):
                if i != r:
                    wanted[i, j, k] = (1 - wanted[r, j, k]) * g[i] / (g.sum() - g[r])
    return wanted


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.7, 1.0])
def test_shares_are_the_papers_equation(tau):
    torch.manual_seed(4)
    cells = net(mask_rcnn(num_classes=3).backbone, 224).cells
    fields = torch.rand(4, 7, 7, dtype=torch.float64) ** 4
    found = label_shares(fields, cells, tau)
    np.testing.assert_allclose(found.numpy(), equation_2(fields.numpy(), cells.numpy(), tau), rtol=1e-12)
    torch.testing.assert_close(found.sum(0), torch.ones(7, 7, dtype=torch.float64))


def test_shares_of_cells_that_see_their_region_alone_or_nothing():
    cells = net(mask_rcnn(num_classes=3).backbone, 64).cells
    assert torch.equal(label_shares(cells.float() * 5, cells), cells.float())
    assert torch.equal(label_shares(torch.zeros(4, 2, 2), cells), cells.float())


def test_the_loss_is_the_cross_entropy_of_each_cell_averaged_region_by_region():
    torch.manual_seed(5)
    model = net(mask_rcnn(num_classes=3).backbone, 224)
    model.label_weights.copy_(label_shares(torch.rand(4, 7, 7), model.cells))
    logits = torch.randn(2, 4, 7, 7)
    labels = torch.tensor([[0, 3, 2, 2], [1, 1, 3, 0]])
    rows = nn.functional.pad(labels, (0, 4))  # as the loader pads
    weights = torch.tensor([[1, 0.5, 0.25, 1], [1, 1, 1, 1]])
    for given in (None, nn.functional.pad(weights, (0, 4))):
        targets = Targets(torch.zeros(2, 8, 4), rows, rows >= 0, torch.full((2, 2), 224.0), weights=given)
        losses, counts = montage_losses(model, logits, targets)
        wanted = 0.0
        for n in range(2):
            for r in range(4):
                cells = [(j, k) for j in range(7) for k in range(7) if model.cells[r, j, k]]
                mean = 0.0
                for j, k in cells:
                    chances = logits[n, :, j, k].softmax(0)
                    mean -= sum(
                        float(model.label_weights[i, j, k] * chances[labels[n, i]].log()) for i in range(4)
                    ) / len(cells)
                wanted += mean * (1.0 if given is None else float(weights[n, r])) / 8
        assert float(losses["classification"]) == pytest.approx(wanted, rel=1e-5)
        assert int(counts["positives"]) == 6


def test_labels_of_certain_cells_cost_nothing():
    model = net(Linear())
    logits = torch.full((1, 4, 4, 4), -50.0)
    labels = torch.tensor([[2, 1, 0, 3]])
    for region in range(4):
        logits[0, labels[0, region]][model.cells[region]] = 50.0
    targets = Targets(torch.zeros(1, 4, 4), labels, labels >= 0, torch.full((1, 2), 128.0))
    assert float(montage_losses(model, logits, targets)[0]["classification"]) == pytest.approx(0, abs=1e-6)
