"""TensorRT-RTX engines are built ahead of time, with no GPU; running them needs one."""

import json

import pytest

from directdet.common.errors import UsageProblem, UserError
from directdet.export.options import ExportOptions
from directdet.export.run import export
from directdet.export.tensorrt import build_engine
from directdet.infer.runtimes.load import load


@pytest.mark.slow
def test_engine_is_built_without_a_gpu(checkpoint, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    options = ExportOptions("tensorrt-rtx", batch=(1, 2, 4), compute_capability="sm_86,8.9")
    result = export(checkpoint, tmp_path / "engine", options)
    assert result.verification.passed and result.engine.compute_capabilities == ("8.6", "8.9")
    assert any("not run here" in note for note in result.verification.notes)
    meta = json.loads((tmp_path / "engine" / "meta.json").read_text())
    assert meta["kind"] == "tensorrt-rtx" and meta["built_for"]["library"] == "tensorrt_rtx"
    assert meta["built_for"]["compute_capability"] == ["8.6", "8.9"] and meta["shapes"]["batch"]["max"] == 4
    assert list(meta["files"]) == ["model.engine"] and not (tmp_path / "engine" / "model.onnx").exists()
    assert (tmp_path / "engine" / meta["file"]).stat().st_size > 100_000
    meta["built_for"]["compute_capability"] = "1.0"
    (tmp_path / "engine" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError) as caught:  # on whatever machine: no GPU, or another one
        load(tmp_path / "engine")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_unknown_capability(exported, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    with pytest.raises(UsageProblem, match="SM89"):
        build_engine("tensorrt-rtx", exported.artefact / "model.onnx", tmp_path / "model.engine", ("9.9",))
    assert not (tmp_path / "model.engine").exists()
