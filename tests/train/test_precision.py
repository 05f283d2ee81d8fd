"""precision="auto": bf16 where the device computes in it, settled when a run begins and kept to its end."""

from dataclasses import replace

import pytest
import torch
from interrupting import interrupt

from directdet.common.errors import UserError
from directdet.recipes.recipe import Phase
from directdet.recipes.settings import apply_settings
from directdet.train.loop import Trainer
from directdet.train.prepare import with_precision
from directdet.train.run import train
from directdet.train.run_file import stored_phase, stored_run

PHASE = Phase("pretrain", "direct", (64, 64), precision="auto")


@pytest.mark.parametrize(
    ("device", "says", "chosen"),
    [
        ("cpu", {"avx512_bf16": True}, "bf16"),
        ("cpu", {"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ("cpu", {"avx512_bf16": False, "avx2": True}, "fp32"),
        ("cuda:1", (8, 0), "bf16"),
        ("cuda:1", (7, 5), "fp32"),
    ],
)
def test_it_is_what_the_device_computes_in(monkeypatch, device, says, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: says, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", {torch.device("cuda:1"): says}.get)
    assert with_precision(PHASE, torch.device(device)) == replace(PHASE, precision=chosen)
    for asked in ("fp32", "bf16", "fp16"):
        given = replace(PHASE, precision=asked)
        assert with_precision(given, torch.device(device)) is given


def test_it_is_fp32_where_pytorch_does_not_say(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert with_precision(PHASE, torch.device("cpu")).precision == "fp32"


@pytest.fixture
def computes(monkeypatch):
    """Says whether the processor computes in bf16."""
    return lambda has: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has}, raising=False)


@pytest.mark.parametrize("named", [True, False], ids=["by its name", "as the folder has it"])
@pytest.mark.parametrize(("has", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_a_run_that_goes_on_elsewhere_keeps_its_precision(
    shapes, tiny, tmp_path, monkeypatch, capsys, computes, has, chosen, named
):
    recipe = apply_settings(tiny, ["precision=auto", "pretrain.size=96"])
    computes(has)
    step = Trainer.step

    def interrupted(self, batches):
        if self.position.step == 2:
            interrupt()
        return step(self, batches)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(Trainer, "step", interrupted)
        train(recipe, shapes, tmp_path / "run", phase="pretrain")
    assert f"images per step, {chosen}, cpu" in " ".join(capsys.readouterr().out.split())
    computes(not has)
    again = recipe if named else stored_run(tmp_path / "run").recipe
    train(again, shapes, tmp_path / "run", phase="pretrain", resume=True)
    assert stored_phase(tmp_path / "run" / "pretrain").precision == chosen
    assert f"images per step, {chosen}, cpu" in " ".join(capsys.readouterr().out.split())
    other = apply_settings(recipe, [f"precision={'fp32' if has else 'bf16'}"])
    with pytest.raises(UserError, match=f'pretrain.precision was "{chosen}"'):
        train(other, shapes, tmp_path / "run", phase="pretrain", resume=True)


def test_a_phase_that_is_started_elsewhere_has_the_precision_of_the_run(shapes, tiny, tmp_path, computes):
    recipe = apply_settings(tiny, ["precision=auto"])
    computes(True)
    train(recipe, shapes, tmp_path / "run", phase="pretrain")
    computes(False)
    train(recipe, shapes, tmp_path / "run", phase="finetune")
    assert [stored_phase(tmp_path / "run" / name).precision for name in ("pretrain", "finetune")] == ["bf16", "bf16"]
    assert [phase["name"] for phase in train(recipe, shapes, tmp_path / "run", resume=True).phases]  # it goes on whole
