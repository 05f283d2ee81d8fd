"""Statistics of batch normalisation measured over images at a phase's size, before they are fixed."""

import copy
from dataclasses import replace

import pytest
import torch
from slim_models import lived_in, mask_rcnn
from torch import nn

from directdet.data.dataset import load_dataset
from directdet.infer.preprocess import Preprocess
from directdet.models.build import build_model
from directdet.models.checkpoint import load_checkpoint
from directdet.models.parts.targets import Targets
from directdet.recipes.recipe import Phase
from directdet.train import run as run_module
from directdet.train.averages.statistics import estimate_statistics
from directdet.train.data import make_phase_loader
from directdet.train.run import train
from directdet.train.step import Criterion, normalise


def phase_of(**changes) -> Phase:
    settings = {"batch_size": 12, "workers": 0, "norm": "fixed", "precise_bn": 12, "channels_last": False}
    return Phase(name="finetune", resize="direct", size=(64, 64), **{**settings, **changes})


@pytest.fixture
def pictures(shapes):
    return load_dataset(shapes, "train")


def norms_of(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}


def test_one_batch_is_what_torch_measures(pictures):
    """With momentum 1, torch's running statistics are those of the last batch."""
    torch.set_num_threads(1)
    model = lived_in(mask_rcnn(num_classes=4))
    other, phase = copy.deepcopy(model).train(), phase_of()
    for norm in norms_of(other).values():
        norm.momentum = 1.0
    ((images, targets),) = make_phase_loader(phase, pictures, True, 0, False)
    torch.manual_seed(0)
    Criterion(other, phase, Preprocess(phase.size))(images, Targets(**targets))
    assert estimate_statistics(model, phase, pictures, 0) == 12
    expected = norms_of(other)
    assert len(expected) >= 20
    for name, norm in norms_of(model).items():
        torch.testing.assert_close(norm.running_mean, expected[name].running_mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(norm.running_var, expected[name].running_var, atol=1e-6, rtol=1e-4)
    for name, value in model.named_parameters():
        assert torch.equal(value, other.get_parameter(name)), name


def test_several_batches_are_pooled(pictures):
    """Of the first layer, whose input does not depend on the batch: all values together, not the mean of variances."""
    model, phase = lived_in(mask_rcnn(num_classes=4)), phase_of(batch_size=2, precise_bn=11)
    assert estimate_statistics(model, phase, pictures, 3) == 12  # whole batches
    values = []
    mean, std = (torch.tensor(one) for one in (Preprocess((64, 64)).mean, phase.std))
    for images, targets in make_phase_loader(phase, pictures, True, 3, False):
        values.append(model.backbone.conv1(normalise(images, targets["sizes"], mean, std)).detach())
    together = torch.cat(values).double().transpose(0, 1).flatten(1)
    norm = model.backbone.bn1
    torch.testing.assert_close(norm.running_mean.double(), together.mean(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm.running_var.double(), together.var(1), atol=1e-6, rtol=1e-4)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_more_images_than_there_are_take_several_passes(pictures):
    model = lived_in(mask_rcnn(num_classes=4))
    assert estimate_statistics(model, phase_of(batch_size=5, precise_bn=21), pictures, 0) == 25


def test_a_phase_fixes_what_was_estimated_and_resumes_with_it(shapes, tiny, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    recipe = tiny.with_phase("finetune", precise_bn=12, epochs=1).with_phase("pretrain", eval_every=0)
    recipe = recipe.with_phase("finetune", eval_every=0)
    train(recipe, shapes, tmp_path)
    before, after = (load_checkpoint(tmp_path / name / "checkpoints" / "last.pt") for name in ("pretrain", "finetune"))
    model = build_model(before["model_config"])
    model.load_state_dict(before["model"])
    estimate_statistics(model, recipe.phase("finetune"), load_dataset(shapes, "train"), 0)
    names = [f"{name}.{kind}" for name in norms_of(model) for kind in ("running_mean", "running_var")]
    assert len(names) == 40
    for name in names:
        assert torch.equal(after["model"][name], model.state_dict()[name]), name
        assert not torch.equal(after["model"][name], before["model"][name]), name

    def twice(*_: object) -> int:
        raise AssertionError("estimated again")

    monkeypatch.setattr(run_module, "estimate_statistics", twice)
    train(recipe, shapes, tmp_path, resume=True)
    train(replace(recipe, name="other"), shapes, tmp_path, phase="finetune", dry_run=True)
