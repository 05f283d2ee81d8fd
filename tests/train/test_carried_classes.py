"""A detector of other classes starts from what was learned of those of the same name: exactly these outputs."""

import pytest
import torch
from slim_models import lived_in, saved
from torch import Tensor, nn

from directdet.data.formats.voc import VOC_CLASSES
from directdet.models.build import build_model
from directdet.models.carried import VOC_AS_COCO, carried, common_classes
from directdet.train.banner import describe_start
from directdet.train.prepare import Loaded, load_weights

FROM = ("person", "couch", "cat", "airplane", "zebra")
TO = ("aeroplane", "lamp", "person", "sofa")
PAIRS = {0: 3, 2: 0, 3: 1}  # label in TO: label in FROM
SMALL = {"backbone": "resnet18", "width": 8}
TWO_STAGE = {**SMALL, "fpn_channels": 16, "box_features": 16, "mask_convs": 1, "mask_channels": 8}
MODELS = {
    "rcnn": {"detector": "rcnn", **TWO_STAGE, "box_convs": 1},
    "cascade": {"detector": "cascade", **TWO_STAGE},
    "retinanet": {"detector": "retinanet", **SMALL, "fpn_channels": 16, "head_convs": 1},
    "rtmdet": {"detector": "rtmdet", "backbone": "resnet18", "width": 8, "fpn_channels": 16, "head_convs": 1},
    "ssd": {"detector": "ssd", "backbone": "vgg16", "width": 8, "head_norm": False},
    "ssd_bn": {"detector": "ssd", "backbone": "vgg16", "width": 8},
}


def outputs(model: nn.Module, kind: str) -> dict[str, tuple[Tensor, int]]:
    """Maps of the heads, with the classes last, and how many outputs stand before them; the same input each time."""
    generator = torch.Generator().manual_seed(5)
    side = 300 if kind.startswith("ssd") else 64
    images = torch.rand(1, 3, side, side, generator=generator)
    boxes, masks = (torch.rand(3, 16, size, size, generator=generator) for size in (7, 14))
    model.eval()
    with torch.no_grad():
        if kind == "rcnn":
            logits, deltas = model.predict_boxes(boxes)
            drawn = model.mask_predictor(model.mask_head(masks))
            return {"logits": (logits, 1), "deltas": (deltas.transpose(1, 2), 1), "masks": (drawn.movedim(1, -1), 1)}
        if kind == "cascade":
            found = {}
            for stage in range(3):
                logits, found[f"deltas{stage}"] = model.predict_boxes(stage, boxes)
                drawn = model.mask_predictors[stage](model.mask_heads[stage](masks))
                found |= {f"logits{stage}": (logits, 1), f"masks{stage}": (drawn.movedim(1, -1), 1)}
            return found
        return {"logits": (model(images).logits, int(kind.startswith("ssd")))}


def built(kind: str, classes: tuple[str, ...], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return lived_in(build_model({**MODELS[kind], "num_classes": len(classes)}))


@pytest.mark.parametrize("kind", MODELS)
def test_common_classes_answer_as_in_the_source_and_others_as_before(kind, tmp_path):
    source, model = built(kind, FROM, 1), built(kind, TO, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loaded = load_weights(model, saved(source, tmp_path / "last.pt", FROM), TO)
    assert loaded.carried == (("aeroplane", "airplane"), ("person", "person"), ("sofa", "couch"))
    assert not any(loaded.left.values())
    # The model with all of the source but the class layers, which are as they were.
    fresh = built(kind, TO, 2)
    own = {name: before[name] if model.is_of_classes(name) else value for name, value in source.state_dict().items()}
    fresh.load_state_dict(own)
    wanted, untouched, found = (outputs(one, kind) for one in (source, fresh, model))
    for name, value in found.items():
        if name.startswith("deltas") and kind == "cascade":  # of all classes together
            assert torch.equal(value, wanted[name])
            continue
        (ours, first), theirs, others = value, wanted[name][0], untouched[name][0]
        if first:
            torch.testing.assert_close(ours[..., 0], theirs[..., 0])  # the background
        for label in range(len(TO)):
            expected = theirs[..., first + PAIRS[label]] if label in PAIRS else others[..., first + label]
            torch.testing.assert_close(ours[..., first + label], expected)
            different = others if label in PAIRS else theirs  # or the line above could not fail
            assert not torch.allclose(ours[..., first + label], different[..., first + label])


def test_group_normalised_outputs_are_carried(tmp_path):
    """Their groups hold all classes of a prior, so what is normalised differs; the weights are those of the source."""
    description = {**MODELS["ssd"], "norm": "gn", "head_norm": True}
    torch.manual_seed(1)
    source = lived_in(build_model({**description, "num_classes": len(FROM)}))
    model = lived_in(build_model({**description, "num_classes": len(TO)}))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not any(load_weights(model, saved(source, tmp_path / "last.pt", FROM), TO).left.values())
    state, theirs, seen = model.state_dict(), source.state_dict(), 0
    for name in filter(model.is_of_classes, state):
        for prior in range(state[name].shape[0] // (1 + len(TO))):
            for output in range(1 + len(TO)):
                at, other = prior * (1 + len(TO)) + output, prior * (1 + len(FROM))
                label = output - 1
                row = theirs[name][other] if output == 0 else theirs[name][other + 1 + PAIRS.get(label, 0)]
                assert torch.equal(state[name][at], row if output == 0 or label in PAIRS else before[name][at])
                seen += 1
    assert seen > 300


def test_without_common_classes_nothing_is_carried(tmp_path):
    source, model = built("rcnn", FROM, 1), built("rcnn", ("a", "b", "c", "d", "e"), 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loaded = load_weights(model, saved(source, tmp_path / "last.pt", FROM), ("a", "b", "c", "d", "e"))
    assert loaded.carried == ()
    left = {name: why for names in loaded.left.values() for name, why in names}
    assert set(left.values()) == {"of other classes"} and set(left) == set(filter(model.is_of_classes, before))
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in left)


def test_the_same_classes_in_another_order_are_put_in_order(tmp_path):
    source, model = built("retinanet", FROM, 1), built("retinanet", FROM, 2)
    loaded = load_weights(model, saved(source, tmp_path / "last.pt", FROM), FROM[::-1])
    assert len(loaded.carried) == len(FROM)
    found, wanted = outputs(model, "retinanet")["logits"][0], outputs(source, "retinanet")["logits"][0]
    torch.testing.assert_close(found, wanted.flip(-1))


def test_parts_that_were_not_asked_for_carry_nothing(tmp_path):
    path = saved(built("rcnn", FROM, 1), tmp_path / "last.pt", FROM)
    loaded = load_weights(built("rcnn", TO, 2), path, TO, ("backbone", "fpn", "rpn"))
    assert loaded.carried == () and loaded.taken["box"] == loaded.taken["mask"] == 0
    boxes = load_weights(built("rcnn", TO, 2), path, TO, ("backbone", "fpn", "rpn", "box"))
    assert len(boxes.carried) == 3 and boxes.taken["mask"] == 0 and not boxes.left["box"]


def test_another_head_is_left(tmp_path):
    """Of other channels, its class layers cannot be carried."""
    torch.manual_seed(3)
    model = build_model({**MODELS["rcnn"], "box_features": 24, "num_classes": len(TO)})
    loaded = load_weights(model, saved(built("rcnn", FROM, 1), tmp_path / "last.pt", FROM), TO)
    left = {name for name, _ in loaded.left["box"]}
    assert {"box_predictor.cls_score.weight", "box_predictor.bbox_pred.weight"} <= left
    assert not loaded.left["mask"]


def test_all_of_vocs_classes_are_among_cocos():
    """COCO's names, which the annotations of its sets and torchvision's weights give."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    coco = [
        name
        for name in FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
        if name not in ("N/A", "__background__")
    ]
    assert len(coco) == 80
    pairs = common_classes(VOC_CLASSES, coco)
    assert [label for label, _ in pairs] == list(range(20)) and len({other for _, other in pairs}) == 20
    assert {VOC_CLASSES[a]: coco[b] for a, b in pairs if VOC_CLASSES[a] != coco[b]} == VOC_AS_COCO
    assert common_classes(coco, VOC_CLASSES) == sorted((b, a) for a, b in pairs)


def test_a_name_of_its_own_comes_first():
    assert common_classes(("sofa", "couch", "tv"), ("couch", "sofa")) == [(0, 1), (1, 0)]


@pytest.mark.parametrize(
    ("own", "other", "layout"),
    [
        ((30, 2), (18, 2), (1, 1)),  # six priors, and three
        ((10, 2), (13, 2), (1, 1)),  # outputs that are not of all classes
        ((5, 2), (6, 3), (1, 1)),
        ((4,), (5,), (0, 0)),
    ],
)
def test_what_does_not_belong_together_is_not_carried(own, other, layout):
    assert carried(torch.zeros(own), torch.ones(other), [(0, 1)], (4, 5), layout) is None


def test_the_banner_says_which():
    loaded = Loaded("coco.pt", {"box": 7}, {"box": ()}, (("sofa", "couch"), ("person", "person")))
    assert describe_start(loaded, "coco.pt") == (
        "coco.pt: 7 tensors; the class layers of 2 classes by name: sofa (couch), person"
    )
    assert describe_start(Loaded("coco.pt", {"box": 7}, {"box": ()}), "coco.pt") == "coco.pt: 7 tensors"
