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
        ("cuda", True, "bf16"),
        ("cuda", False, "fp32"),
    ],
)
def test_it_is_what_the_device_computes_in(monkeypatch, device, says, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: says, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: says and not including_emulation)
    assert with_precision(PHASE, torch.device(device)) == replace(PHASE, precision=chosen)
    for asked in ("fp32", "bf16", "fp16"):
        given = replace(PHASE, precision=asked)
        assert with_precision(given, torch.device(device)) is given


def test_it_is_fp32_where_pytorch_does_not_say(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert with_precision(PHASE, torch.device("cpu")).precision == "fp32"


@pytest.mark.parametrize(("has", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_a_run_that_goes_on_elsewhere_keeps_its_precision(shapes, tiny, tmp_path, monkeypatch, capsys, has, chosen):
    recipe = apply_settings(tiny, ["precision=auto", "pretrain.size=96"])
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has}, raising=False)
    step = Trainer.step

    def interrupted(self, batches):
        if self.position.step == 2:
            interrupt()
        return step(self, batches)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(Trainer, "step", interrupted)
        train(recipe, shapes, tmp_path / "run", phase="pretrain")
    assert f"images per step, {chosen}, cpu" in " ".join(capsys.readouterr().out.split())
    assert stored_phase(tmp_path / "run" / "pretrain").precision == chosen
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": not has}, raising=False)
    for again in (recipe, stored_run(tmp_path / "run").recipe):  # by its name, and as the folder has it
        train(again, shapes, tmp_path / "run", phase="pretrain", resume=True)
        assert stored_phase(tmp_path / "run" / "pretrain").precision == chosen
    assert f"images per step, {chosen}, cpu" in " ".join(capsys.readouterr().out.split())
    other = apply_settings(recipe, [f"precision={'fp32' if has else 'bf16'}"])
    with pytest.raises(UserError, match=f'pretrain.precision was "{chosen}"'):
        train(other, shapes, tmp_path / "run", phase="pretrain", resume=True)
