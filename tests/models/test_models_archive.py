"""Checkpoints from strangers: what they would allocate or call is seen before torch reads them."""

import pickle
import zipfile

import pytest
import torch

from directdet.common.errors import UserError
from directdet.models.build import build_model, describe_model
from directdet.models.checkpoint import load_checkpoint, save_checkpoint
from directdet.train.prepare import load_weights


@pytest.fixture(scope="module")
def content():
    model = build_model({"detector": "retinanet", "num_classes": 1, "backbone": "resnet18", "width": 8})
    about = {"classes": ["a"], "category_ids": [1], "preprocess": {}, "recipe": "demo", "phase": "pretrain"}
    return {"model_config": describe_model(model.config), "model": model.state_dict(), **about}


def repacked(path, how):
    """The archive written again, its entries changed by how(name, content, archive)."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            how(name, data, archive)


def test_compressed_entries_are_refused(content, tmp_path):
    """2.5 MB that become 2.5 GB."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, content)
    repacked(path, lambda name, data, archive: archive.writestr(name, data, zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match=r"last\.pt: damaged .*compressed entries, which torch\.save does not write"):
        load_checkpoint(path)


def test_an_entry_that_claims_more_than_the_file_has_is_refused(content, tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, content)
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 24 : place + 28] = (2**31).to_bytes(4, "little")  # the size that the directory gives
    path.write_bytes(data)
    with pytest.raises(UserError, match="claims to hold more than its size"):
        load_checkpoint(path)


class Large:
    def __reduce__(self):
        return bytearray, (10**11,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_call_that_torch_lets_through_is_refused(content, tmp_path, protocol):
    """torch's restricted reader calls bytearray, which takes as much memory as the file says."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, content)
    large = pickle.dumps({"model": Large()}, protocol)
    repacked(path, lambda name, data, to: to.writestr(name, large if name.endswith("data.pkl") else data))
    with pytest.raises(UserError, match="contains objects other than tensors and plain values"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "value",
    [torch.zeros(1).expand(10**10), torch.empty(5, device="meta"), torch.zeros(2, 2).to_sparse(), 3, "a", None, [1]],
    ids=["expanded", "meta", "sparse", "number", "text", "none", "list"],
)
def test_what_is_no_plain_weight_is_named(content, tmp_path, value):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {**content, "model": {**content["model"], "odd.weight": value}})
    with pytest.raises(
        UserError, match=r"last\.pt: (model: \['odd\.weight'\]: is not a tensor|contains objects other)"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("model", [1], "model: (1,) is not a table"),
        ("classes", "abc", "classes: 'abc' is not words"),
        ("classes", [1], "classes: 1 is not a word"),
        ("category_ids", [1.5], "category_ids: 1.5 is not a whole number"),
        ("preprocess", None, "preprocess: None is not a table"),
        ("phase", 3, "phase: 3 is not a word"),
        ("step", -1, "step: -1 is not at least 0"),
        ("step", "3", "step: '3' is not a whole number"),
        ("best", "high", "best: 'high' is not a number"),
        ("optimizer", [], "optimizer: () is not a table"),
    ],
)
def test_odd_fields_are_named(content, tmp_path, field, value, says):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {**content, field: value})
    with pytest.raises(UserError, match=r"last\.pt: .*; use an earlier checkpoint") as caught:
        load_checkpoint(path)
    assert says in str(caught.value)


def test_a_backbone_in_a_compressed_file_is_refused(tmp_path):
    path = tmp_path / "backbone.pt"
    model = build_model({"detector": "retinanet", "num_classes": 1, "backbone": "resnet18", "width": 8})
    torch.save({name: value for name, value in model.backbone.state_dict().items()}, path)
    repacked(path, lambda name, data, archive: archive.writestr(name, data, zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match="compressed entries"):
        load_weights(model, path, ("a",))
