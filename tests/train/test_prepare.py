"""What a phase starts from: which tensors are loaded, which are left and why, and which files are refused."""

import pickle
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from rich.console import Console
from slim_models import CLASSES, backbone_file, copied, lived_in, mask_rcnn, saved

from directdet.common.errors import UserError
from directdet.infer.preprocess import Preprocess
from directdet.models.backbones.builders import BACKBONES
from directdet.models.build import build_model
from directdet.models.parts.targets import Targets
from directdet.recipes.recipe import PARTS, Phase
from directdet.recipes.settings import apply_settings
from directdet.train.prepare import Loaded, load_weights
from directdet.train.run import train
from directdet.train.step import Criterion, reduced_precision


def reasons(loaded: Loaded) -> dict[str, set[str]]:
    return {part: {why for _, why in names} for part, names in loaded.left.items()}


# ---- Which tensor belongs to which part

MODULES = {
    "backbone": "backbone",
    "fpn": "fpn",
    "rpn_head": "rpn",
    **dict.fromkeys(("box_head", "box_heads", "box_predictor", "box_predictors", "head"), "box"),
    **dict.fromkeys(("mask_head", "mask_heads", "mask_predictor", "mask_predictors"), "mask"),
}


@pytest.mark.parametrize(
    ("detector", "settings"),
    [
        *(("rcnn", {"backbone": backbone}) for backbone in BACKBONES),
        ("rcnn", {"masks": False, "box_convs": 0}),
        ("rcnn", {"norm": "gn"}),
        ("cascade", {"masks": True}),
        ("cascade", {"masks": False}),
        ("retinanet", {}),
        ("retinanet", {"norm": "gn"}),
    ],
)
def test_every_tensor_belongs_to_a_part(detector, settings):
    with torch.device("meta"):
        model = build_model({"detector": detector, "num_classes": 3, "backbone": "resnet18", **settings})
    names = [*model.state_dict(), *(name for name, _ in model.named_parameters())]
    assert all(model.part_of(name) == MODULES[name.partition(".")[0]] for name in names)
    found = {model.part_of(name) for name in names}
    missing = {"rpn"} if detector == "retinanet" else set()
    assert found == set(PARTS) - missing - (set() if model.config.masks else {"mask"})


# ---- Loading a checkpoint, wholly and in parts (Table 5)


@pytest.mark.parametrize("number", range(1, 6))
def test_a_prefix_of_the_parts_loads_just_that(number, tmp_path):
    source, model = lived_in(mask_rcnn(1)), mask_rcnn(2)
    before, wanted = copied(model), source.state_dict()
    loaded = load_weights(model, saved(source, tmp_path / "last.pt"), CLASSES, PARTS[:number])
    for name, value in model.state_dict().items():
        taken = model.part_of(name) in PARTS[:number]
        assert torch.equal(value, wanted[name] if taken else before[name]), name
        assert not torch.equal(wanted[name], before[name]), name  # or the line above could not fail
    sizes = {part: sum(model.part_of(name) == part for name in wanted) for part in PARTS}
    assert loaded.taken == {part: sizes[part] * (part in PARTS[:number]) for part in PARTS}
    assert loaded.count() == sum(sizes[part] for part in PARTS[:number])
    assert {part: len(names) for part, names in loaded.left.items()} == {
        part: sizes[part] * (part not in PARTS[:number]) for part in PARTS
    }
    assert reasons(loaded) == {part: set() if part in PARTS[:number] else {"not requested"} for part in PARTS}


def test_what_does_not_fit_is_left_and_told(tmp_path):
    source = lived_in(mask_rcnn(1, masks=False, num_classes=5, box_features=24))
    path = saved(source, tmp_path / "last.pt", ("a", "b", "c", "d", "e"))
    model = mask_rcnn(2)
    before = copied(model)
    loaded = load_weights(model, path, CLASSES)
    assert reasons(loaded) == {
        "backbone": set(),
        "fpn": set(),
        "rpn": set(),
        "box": {"of another shape"},
        "mask": {"missing"},
    }
    for part in ("box", "mask"):
        for name, _ in loaded.left[part]:
            assert torch.equal(model.state_dict()[name], before[name]), name
    assert torch.equal(model.box_head[0][0].weight, source.box_head[0][0].weight)  # of the box head, what fits
    console = Console(width=120)
    with console.capture() as capture:
        console.print(loaded.table())
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capture.get().splitlines() if "│" in line]
    box = len(loaded.left["box"])
    assert ["box", str(loaded.taken["box"]), str(box), f"{box} of another shape"] in lines
    assert ["backbone", str(loaded.taken["backbone"]), "0", ""] in lines
    assert ["mask", "0", str(len(loaded.left["mask"])), f"{len(loaded.left['mask'])} missing"] in lines


@pytest.mark.parametrize("detector", ["rcnn", "cascade", "retinanet"])
def test_layers_of_other_classes_are_left(detector, tmp_path):
    settings = {"detector": detector, "num_classes": 3, "backbone": "resnet18", "width": 8, "fpn_channels": 16}
    settings |= {} if detector == "retinanet" else {"box_features": 16, "mask_channels": 8}
    source, model = lived_in(build_model(settings)), build_model(settings)
    path = saved(source, tmp_path / "last.pt")
    loaded = load_weights(model, path, ("cow", "hen", "fish"))
    left = {name for part in loaded.left.values() for name, _ in part}
    classes = {"box_predictor", "box_predictors", "mask_fcn_logits", "cls_logits"}
    heads = [name for name in source.state_dict() if source.part_of(name) in ("box", "mask")]
    assert left == {name for name in heads if classes & set(name.split("."))} != set()
    assert set().union(*reasons(loaded).values()) == {"of other classes"}
    same = build_model(settings)
    assert not any(load_weights(same, path, CLASSES).left.values())
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in same.state_dict().items())


def test_a_cascade_hands_on_what_it_has_in_common_with_mask_rcnn(tmp_path):
    settings = {"backbone": "resnet18", "width": 8, "fpn_channels": 16, "box_features": 16, "mask_channels": 8}
    source = build_model({"detector": "cascade", "num_classes": 3, **settings})
    loaded = load_weights(mask_rcnn(), saved(lived_in(source), tmp_path / "last.pt"), CLASSES)
    assert not loaded.left["backbone"] and not loaded.left["fpn"] and not loaded.left["rpn"]
    assert loaded.taken["box"] == loaded.taken["mask"] == 0
    assert reasons(loaded)["box"] == reasons(loaded)["mask"] == {"missing"}


# ---- Backbones trained on ImageNet


def test_a_backbone_of_torchvision(tmp_path):
    torch.manual_seed(3)
    oracle = lived_in(torchvision.models.resnet18()).state_dict()
    for zipped in (True, False):  # torchvision's older files are not zipped
        torch.save(oracle, tmp_path / "resnet18.pth", _use_new_zipfile_serialization=zipped)
        model = mask_rcnn(width=None)
        before = copied(model)
        loaded = load_weights(model, tmp_path / "resnet18.pth", CLASSES)
        assert loaded.taken == {"backbone": 120, "fpn": 0, "rpn": 0, "box": 0, "mask": 0}
        assert reasons(loaded) == {part: {"missing"} if part != "backbone" else set() for part in PARTS}
        for name, value in model.state_dict().items():
            own = name.removeprefix("backbone.")
            assert torch.equal(value, before[name] if own == name else oracle[own]), name


def test_a_transformer_keeps_its_own_norms_of_the_levels(tmp_path):
    model = mask_rcnn(backbone="swin_t", width=32)
    before = copied(model)
    loaded = load_weights(model, backbone_file(tmp_path / "swin.pth", "swin_t", 32), CLASSES)
    assert {name for name, _ in loaded.left["backbone"]} == {
        f"backbone.norm{level}.{kind}" for level in range(2, 6) for kind in ("weight", "bias")
    }
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("backbone.features") for name in changed)


def test_files_that_old_torch_wrote_have_no_counters(tmp_path):
    state = {k: v for k, v in BACKBONES["resnet18"](8).state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "old.pth")
    loaded = load_weights(mask_rcnn(), tmp_path / "old.pth", CLASSES)
    assert loaded.taken["backbone"] == 100 and len(loaded.left["backbone"]) == 20


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ("resnet18", "resnet50"),
        ("resnet50", "resnet18"),
        ("resnet101", "resnet50"),  # it has all of ResNet-50's tensors: only what is left over tells them apart
        ("swin_t", "resnet18"),
        ("resnet18", "swin_t"),
    ],
)
def test_half_a_backbone_is_refused(found, wanted, tmp_path):
    widths = {"swin_t": 32}
    path = backbone_file(tmp_path / "file.pth", found, widths.get(found, 8))
    model = mask_rcnn(backbone=wanted, width=widths.get(wanted, 8))
    before = copied(model)
    with pytest.raises(
        UserError, match=r"file\.pth: backbone\.\S+ is .*; use weights of this recipe's backbone"
    ) as caught:
        load_weights(model, path, CLASSES)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("own", "found", "says"),
    [
        ({"backbone": "resnet18", "width": 8}, {"backbone": "resnet18", "width": 16}, "is of another shape"),
        ({"norm": "gn"}, {}, "is not in this recipe's network"),
        ({}, {"norm": "gn"}, "running_mean is missing"),
    ],
)
def test_another_detectors_backbone_is_refused(own, found, says, tmp_path):
    path = saved(lived_in(mask_rcnn(1, **found)), tmp_path / "last.pt")
    with pytest.raises(UserError, match=rf"last\.pt: backbone\.\S*.*{says}.*recipe's backbone"):
        load_weights(mask_rcnn(2, **own), path, CLASSES)
    other = load_weights(mask_rcnn(2, **own), path, CLASSES, ("fpn",))  # of its backbone nothing is asked
    assert other.taken["backbone"] == 0


def test_files_of_another_kind_are_refused_in_one_line(tmp_path):
    def refused(path: Path, says: str) -> None:
        with pytest.raises(UserError) as caught:
            load_weights(mask_rcnn(), path, CLASSES)
        assert str(path) in str(caught.value) and says in str(caught.value) and "\n" not in str(caught.value)

    refused(tmp_path / "missing.pth", "no such checkpoint")
    refused(tmp_path, "no such checkpoint")
    whole = backbone_file(tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.pth", "truncated")
    (tmp_path / "text.pth").write_text("weights, so to say")
    refused(tmp_path / "text.pth", "not a file written by torch.save")
    (tmp_path / "empty.pth").write_bytes(b"")
    refused(tmp_path / "empty.pth", "not a file written by torch.save")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps({"conv1.weight": 1}, protocol=2))
    refused(tmp_path / "pickle.pth", "not a file written by torch.save")
    for content in ({"state_dict": {"conv1.weight": torch.zeros(8, 3, 7, 7)}, "meta": {}}, {}, [torch.zeros(3)]):
        torch.save(content, tmp_path / "other.pth")
        refused(tmp_path / "other.pth", "not a directdet checkpoint")
    detector = {"backbone.body.conv1.weight": torch.zeros(8, 3, 7, 7), "rpn.head.conv.weight": torch.ones(1)}
    torch.save(detector, tmp_path / "torchvision.pth")
    refused(tmp_path / "torchvision.pth", "use weights of this recipe's backbone")


class TestImageNet:
    """Without a network: torchvision's enumeration of weights is asked, nothing is fetched."""

    @pytest.mark.parametrize("backbone", [name for name in BACKBONES if name in torchvision.models.list_models()])
    def test_without_a_network(self, monkeypatch, backbone):
        def offline(self: object, *_: object, **__: object) -> None:
            raise URLError("Name or service not known")

        monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", offline)
        url = torchvision.models.get_model_weights(backbone).IMAGENET1K_V1.url
        model = mask_rcnn(backbone=backbone, width=32 if backbone == "swin_t" else 8)
        with pytest.raises(UserError, match=r"could not be fetched.*--init FILE") as caught:
            load_weights(model, "imagenet", CLASSES)
        assert url in str(caught.value) and url.rpartition("/")[2].startswith(backbone)
        assert "\n" not in str(caught.value)

    def test_with_one(self, monkeypatch, tmp_path):
        state = torch.load(backbone_file(tmp_path / "file.pth"), weights_only=True)
        asked = []

        def fetched(self: object, *_: object, **__: object) -> dict[str, torch.Tensor]:
            asked.append(self)
            return state

        monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", fetched)
        model = mask_rcnn()
        loaded = load_weights(model, "imagenet", CLASSES)
        assert asked == [torchvision.models.ResNet18_Weights.IMAGENET1K_V1]
        assert loaded.taken["backbone"] == 120 and torch.equal(model.backbone.conv1.weight, state["conv1.weight"])
        with pytest.raises(UserError, match=r"imagenet: backbone\.conv1\.weight is of another shape"):
            load_weights(mask_rcnn(width=16), "imagenet", CLASSES)

    def test_a_run_that_cannot_start_writes_nothing(self, shapes, tiny, tmp_path, monkeypatch):
        def offline(*_: object, **__: object) -> None:
            raise URLError("offline")

        monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", offline)
        with pytest.raises(UserError, match="--init FILE"):
            train(apply_settings(tiny, ["init=imagenet"]), shapes, tmp_path / "run", phase="finetune")
        assert not (tmp_path / "run").exists()


def test_narrow_networks_train_on_a_cpu_where_channels_last_would_crash():
    """In a process of its own: the crash is a segmentation fault. Wider networks keep the faster format."""
    code = """
import torch
from directdet.infer.preprocess import Preprocess
from directdet.models.build import build_model
from directdet.models.parts.targets import Targets
from directdet.recipes.recipe import Phase
from directdet.train.prepare import safe_format
phase = Phase("pretrain", "direct", (224, 224))
for width in (4, 8, 16):
    config = {"detector": "retinanet", "num_classes": 2, "backbone": "resnet18", "width": width, "fpn_channels": 16}
    model = build_model(config).train()
    last = safe_format(model, phase).channels_last
    layout = torch.channels_last if last else torch.contiguous_format
    model.to(memory_format=layout)
    images = torch.randn(4, 3, 224, 224).contiguous(memory_format=layout)
    for _ in range(3):
        sum(m.square().mean() for m in model.backbone(images).values()).backward()
    print(width, last, flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.splitlines() == ["4 False", "8 False", "16 True"], done.stderr


def test_gradients_in_bf16_are_those_of_the_pixels_whatever_the_memory_holds():
    """P7 of a 64x64 canvas is made from a single pixel: taps beyond it learn nothing."""
    config = {"detector": "retinanet", "num_classes": 2, "backbone": "resnet18", "width": 16, "fpn_channels": 16}
    for side, reduced in ((64, None), (96, torch.bfloat16)):
        model = build_model(config)
        phase = Phase("pretrain", "direct", (side, side), precision="bf16")
        assert reduced_precision(model, phase, torch.device("cpu"), side) is reduced
        assert reduced_precision(model, phase, torch.device("cuda"), side) is torch.bfloat16
        criterion = Criterion(model.train(), phase, Preprocess(size=(side, side)))
        boxes = torch.tensor([[[4.0, 4.0, 50.0, 40.0]]]).expand(2, -1, -1)
        ones = torch.ones(2, 1, dtype=torch.bool)
        targets = Targets(boxes, torch.zeros(2, 1, dtype=torch.long), ones, torch.full((2, 2), float(side)))
        images = torch.randint(0, 255, (2, 3, side, side), dtype=torch.uint8)
        for _ in range(10):
            model.zero_grad()
            rubbish = [torch.full((size,), torch.nan) for size in (64, 512, 2304, 4096)]  # as freed memory may hold
            del rubbish
            losses, _ = criterion(images, targets)
            sum(losses.values()).backward()
            gradient = model.fpn.extra_blocks.p7.weight.grad
            assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)
            if side == 64:  # 3x3 on one pixel with a border of one: only the middle meets it
                gradient[..., 1, 1] = 0
                assert not gradient.any()
