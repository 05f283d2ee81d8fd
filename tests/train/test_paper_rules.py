"""Rules of the papers' code: difficult objects, the best of a run, rates and decay of biases, sizes and heads."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from directdet.common.errors import UserError
from directdet.data.records import AnnotatedObject, Dataset, make_record
from directdet.models.build import build_model
from directdet.recipes.by_name import RECIPES, get_recipe
from directdet.recipes.published import direct_table7
from directdet.train.data import make_phase_loader
from directdet.train.log import read_log
from directdet.train.objects import count_objects
from directdet.train.optim import build_optimizer
from directdet.train.run import train
from directdet.train.step import Stepper

TWO_STAGE_VOC = (
    "faster_rcnn_r50_fpn_voc",
    "faster_rcnn_r50_fpn_voc_imagenet",
    "faster_rcnn_vgg16_scratch",
    "faster_rcnn_vgg16_scratch_no_bn",
    "faster_rcnn_vgg16_imagenet",
)


def voc_like(folder: Path, difficult: list[list[bool]]) -> Dataset:
    """A picture for each list, with an object for each of its flags."""
    records = []
    for number, flags in enumerate(difficult):
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), np.zeros((300, 300, 3), np.uint8))
        objects = [
            AnnotatedObject(i, i % 2, [20.0 * i, 20.0, 20.0 * i + 90, 120.0], 9000.0, difficult=flag)
            for i, flag in enumerate(flags)
        ]
        records.append(make_record(number, path, 300, 300, objects))
    return Dataset(folder, "train", "voc", ("a", "b"), (1, 2), tuple(records))


def labels_seen(name: str, dataset: Dataset) -> Iterator[list[int]]:
    """The labels of every training picture of a recipe's first phase, in sorted order."""
    phase = get_recipe(name).with_phase(get_recipe(name).phases[0].name, batch_size=1, workers=0).phases[0]
    for _, targets in make_phase_loader(phase, dataset, masks=False, seed=0, pin_memory=False):
        yield sorted(targets["labels"][targets["valid"]].tolist())


@pytest.mark.parametrize("name", TWO_STAGE_VOC)
def test_two_stage_recipes_leave_out_difficult_objects(tmp_path: Path, name: str):
    dataset = voc_like(tmp_path, [[False, True, False], [False, False], [True, True]])
    seen = sorted(labels_seen(name, dataset))
    # The last picture has no other objects: mmdet leaves out empty pictures, Faster R-CNN's code has none here.
    assert [labels for labels in seen if labels] == [[0, 0], [0, 1]]
    assert count_objects(get_recipe(name).phases[0], dataset).objects == 4
    with pytest.raises(UserError, match=r"no object to train on \(0 crowd regions, 2 marked difficult, 0"):
        count_objects(get_recipe(name).phases[0], voc_like(tmp_path, [[True, True]]))


def test_ssd_trains_on_difficult_objects(tmp_path: Path):
    dataset = voc_like(tmp_path, [[True]])
    seen = [labels for _ in range(1) for labels in labels_seen("ssd300_root_resnet18", dataset)]
    assert seen == [[0]]
    assert count_objects(get_recipe("ssd300_root_resnet18").phases[0], dataset).objects == 1


def test_without_difficult_keeps_every_field_of_the_rest(tmp_path: Path):
    dataset = voc_like(tmp_path, [[False, True, False, True], [False]])
    record, whole = dataset.without_difficult().records
    assert whole is dataset.records[1]
    for name in ("boxes", "labels", "crowd", "areas"):
        np.testing.assert_array_equal(getattr(record, name), getattr(dataset.records[0], name)[[0, 2]])
    assert record.annotation_ids == (0, 2) and not record.difficult.any() and len(record.segmentations) == 2


def test_voc_recipes_choose_the_best_by_vocs_measure():
    coco = {"ssd300_root_resnet34_coco", "ssd300_vgg16_slim"}
    for name in RECIPES:
        voc = name in TWO_STAGE_VOC or (name.startswith(("ssd300", "dsod300")) and name not in coco)
        assert {phase.best_by for phase in get_recipe(name).phases} == {"mAP_11point" if voc else "AP"}, name


@pytest.mark.parametrize("best_by", ["AP", "mAP_11point", "mAP_area"])
def test_best_is_the_highest_of_its_measure(shapes, tiny, tmp_path: Path, monkeypatch, best_by: str):
    """Three evaluations, of which each measure has its best elsewhere."""
    from directdet.train import loop

    figures = iter([(0.3, 0.1, 0.2), (0.1, 0.5, 0.3), (0.2, 0.2, 0.6)])
    real = loop.scored

    def made_up(*given):
        evaluation = real(*given)
        metrics = evaluation.metrics
        metrics.bbox["AP"], metrics.voc["mAP_11point"], metrics.voc["mAP_area"] = next(figures)
        return evaluation

    monkeypatch.setattr(loop, "scored", made_up)
    recipe = tiny.with_phase("pretrain", epochs=3, best_by=best_by)
    result = train(recipe, shapes, tmp_path / "run", phase="pretrain")
    epochs = {"AP": (1, 0.3), "mAP_11point": (2, 0.5), "mAP_area": (3, 0.6)}
    per_epoch = max(r["step"] for r in read_log(tmp_path / "run/pretrain/log.jsonl")) // 3
    best = torch.load(tmp_path / "run/pretrain/checkpoints/best.pt", weights_only=True)
    assert (best["step"] // per_epoch, best["best"]) == epochs[best_by]
    assert (result.phases[0]["best_by"], result.phases[0]["best_ap"]) == (best_by, epochs[best_by][1])


@pytest.mark.parametrize(
    "name", ["ssd300_vgg16_both_lr05", "ssd300_vgg16_none_lr001", "ssd300_root_resnet34", "dsod300"]
)
def test_biases_of_ssd_learn_twice_as_fast_and_do_not_decay(name: str):
    """SSD's layers have lr_mult 1 and decay_mult 1 for weights, 2 and 0 for biases; the head's BN has decay_mult 0."""
    recipe = get_recipe(name)
    phase = recipe.phases[0]
    model = build_model({"detector": "ssd", "num_classes": 3, **recipe.model, "width": 16})
    optimizer = Stepper(model, phase, get_preprocess(), 0.05, 0).optimizer
    names = {id(p): n for n, p in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for module_name, module in model.named_modules():
        for own, _ in module.named_parameters(recurse=False):
            key = f"{module_name}.{own}"
            if isinstance(module, nn.BatchNorm2d):
                assert found[key] == (0.05, 0.0 if key.startswith("head.") else 5e-4), key
            elif own == "bias":
                assert found[key] == (0.1, 0.0), key
            else:
                assert found[key] == (0.05, 5e-4), key


def get_preprocess():
    from directdet.infer.preprocess import Preprocess

    return Preprocess(size=(300, 300))


def test_the_schedule_keeps_the_ratio_of_the_rates():
    layer = build_model({"detector": "ssd", "num_classes": 1, "backbone": "vgg16", "norm": "none", "width": 4})
    phase = get_recipe("ssd300_vgg16_none_lr001").phases[0]
    stepper = Stepper(layer, phase, get_preprocess(), 0.001, 0)
    images = torch.randint(0, 255, (2, 3, 300, 300), dtype=torch.uint8)
    targets = {
        "boxes": torch.tensor([[[20.0, 20, 200, 200]]] * 2),
        "labels": torch.zeros(2, 1, dtype=torch.long),
        "valid": torch.ones(2, 1, dtype=torch.bool),
        "sizes": torch.full((2, 2), 300.0),
    }
    for step, rate in ((0, 0.001), (45_000, 0.0001), (95_000, 1e-6)):
        stepper.step([(images, targets)], step, 1)
        assert sorted({g["lr"] for g in stepper.optimizer.param_groups}) == pytest.approx([rate, 2 * rate])


def test_biases_of_vgg_faster_rcnn_learn_twice_as_fast():
    recipe = get_recipe("faster_rcnn_vgg16_scratch")
    assert recipe.model["cross_border_anchors"] is False
    config = {"detector": "rcnn", "num_classes": 2, **recipe.model, "width": 8, "box_features": 16}
    groups = build_optimizer(build_model(config), recipe.phases[0], 0.01).param_groups
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.01, 5e-4), (0.01, 5e-4), (0.02, 5e-4)]


def test_every_other_recipe_has_one_rate_and_crosses_borders():
    for name in RECIPES:
        recipe = get_recipe(name)
        if recipe.detector == "ssd" or name.startswith("faster_rcnn_vgg16"):
            continue
        decayed = recipe.detector not in ("rtmdet", "rtmdet_ins")  # AdamW's rule, as mmdet has it
        assert all((phase.bias_rate, phase.bias_weight_decay) == (1, decayed) for phase in recipe.phases), name
        assert recipe.model.get("cross_border_anchors", True), name


def test_dropblock_is_evaluated_as_it_is_trained():
    (phase,) = get_recipe("mask_rcnn_r50_fpn_dropblock_3x").phases
    assert phase.size == phase.eval_size == (640, 640) and phase.eval_fixed


def test_the_rows_of_table_7_have_the_head_of_its_title():
    assert direct_table7().title == "time, Mask R-CNN R50-FPN 4conv1fc, (1333,800)"
    networks = [{"box_convs": 4, **get_recipe(row.recipe).model} for row in direct_table7().rows]
    assert [network["box_convs"] for network in networks] == [4] * 4
    assert [network.get("norm", "bn") for network in networks] == ["bn", "gn", "bn", "bn"]
    # The AP of the ImageNet rows is mmdet's, of two fully connected layers.
    assert get_recipe("mask_rcnn_r50_fpn_imagenet_1x").model["box_convs"] == 0
