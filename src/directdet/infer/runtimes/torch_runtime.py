"""Running a checkpoint, or a model that is being trained, with PyTorch. torch is imported only when this is used."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from directdet.common.errors import MissingLibraryError, UserError
from directdet.infer.network_input import NetworkInput
from directdet.infer.predictor import Predictor
from directdet.infer.preprocess import Preprocess

if TYPE_CHECKING:
    import torch

_KEPT_SIZES = 48  # (1333, 800) with padding to 32 gives about 40 canvas sizes


class TorchBackend:
    """A PyTorch detector; see `runtimes.Backend`.

    The deployed form depends on the canvas, so one is kept for each canvas size met (the latest 48). The model's own
    modules and weights are shared, never copied: a model in training is evaluated as it stands, and its train/eval
    modes are as before after every call.

    Args:
        model: of `models.build.build_model`.
        device: "cpu", "cuda", "cuda:N" as torch names them; the model is moved there.
        precision: None leaves torch's settings alone, "fp32" switches TF32 off and "tf32" on (GPU only); "bf16" and
            "fp16" run under autocast.
        threads: recorded only; `load_torch` sets it.
        compiled: run the deployed form through `torch.compile`, for each canvas anew.
    """

    runtime = "torch"
    input = NetworkInput()
    batch: int | None = None
    max_batch: int | None = None
    canvas: tuple[int, int] | None = None

    def __init__(
        self,
        model: torch.nn.Module,
        device: str,
        precision: str | None = None,
        threads: int | None = None,
        compiled: bool = False,
    ) -> None:
        import torch

        self._device = torch.device(device)
        self.model = model.to(self._device)
        self._precision, self._compiled = precision, compiled
        self._deployed: OrderedDict[tuple[int, int], torch.nn.Module] = OrderedDict()
        gpu = self._device.type == "cuda"
        self.info: dict[str, Any] = {
            "provider": torch.cuda.get_device_name(self._device) if gpu else "torch cpu",
            "device": str(self._device),
            "precision": precision or ("fp32, tf32 as torch is set" if gpu else "fp32"),
            "threads": threads,
            "compiled": compiled,
            "versions": {"torch": torch.__version__, **({"cuda": torch.version.cuda} if gpu else {})},
        }

    def _deploy(self, size: tuple[int, int]) -> torch.nn.Module:
        """The deployed form for one canvas size."""
        if size not in self._deployed:
            from directdet.models.build import deploy_model

            try:
                deployed = deploy_model(self.model, size)
            except ValueError as error:
                raise UserError(f"input of {size[0]}x{size[1]} pixels (H x W): {error}") from None
            if self._compiled:
                import torch

                deployed = torch.compile(deployed, dynamic=False)
            self._deployed[size] = deployed
            if len(self._deployed) > _KEPT_SIZES:
                self._deployed.popitem(last=False)
        self._deployed.move_to_end(size)
        return self._deployed[size]

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """float32 [B, 3, H, W] -> outputs on the host; copying them waits for the GPU."""
        import torch

        # no_grad, not inference_mode: tensors cached by a model in training must stay usable by autograd.
        with torch.no_grad(), _evaluating(self.model), self._tf32(), self._autocast():
            deployed = self._deploy((images.shape[2], images.shape[3]))
            outputs = deployed(torch.from_numpy(images).to(self._device))
            return [(value.float() if value.is_floating_point() else value).cpu().numpy() for value in outputs]

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        """Matrix products and convolutions in 16 bits, if `precision` asks for them; the rest stays in float32."""
        import torch

        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        if self._precision not in kinds:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, kinds[self._precision])

    @contextlib.contextmanager
    def _tf32(self) -> Iterator[None]:
        """TF32 as `precision` asks; as it was afterwards."""
        if self._device.type != "cuda" or self._precision is None:
            yield
            return
        import torch

        settings = (torch.backends.cudnn, torch.backends.cuda.matmul)
        before = [setting.allow_tf32 for setting in settings]
        try:
            for setting in settings:
                setting.allow_tf32 = self._precision == "tf32"
            yield
        finally:
            for setting, value in zip(settings, before, strict=True):
                setting.allow_tf32 = value


class TorchPredictor(Predictor):
    """A `Predictor` around a PyTorch model."""

    @classmethod
    def from_model(
        cls,
        model: torch.nn.Module,
        preprocess: Preprocess,
        classes: Sequence[str],
        category_ids: Sequence[int],
        device: str | torch.device = "cpu",
        source: str = "model",
    ) -> TorchPredictor:
        """Wrap a model, e.g. the one in training, for AP. It is used in eval mode and handed back in its own modes."""
        return cls(TorchBackend(model, str(device)), preprocess, classes, category_ids, source)


def load_torch(
    path: str | Path,
    device: str = "auto",
    threads: int | None = None,
    precision: str | None = None,
    compiled: bool = False,
) -> TorchPredictor:
    """Load a checkpoint file for inference.

    Args:
        path: a .pt file written by training.
        device: "auto" (a GPU if torch has one), "cpu", "cuda" or "cuda:N".
        threads: torch's CPU threads, a setting of the whole process; None leaves it.
        precision: None or "fp32" (TF32 off), "bf16" (autocast), or "tf32" or "fp16" (autocast; GPU only).
        compiled: see `TorchBackend`.

    Raises:
        UserError: torch is not installed, or the checkpoint is missing, broken or does not fit its own model.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingLibraryError(
            f"{path}: a checkpoint needs torch ({error}); run an exported artefact instead"
        ) from None
    from directdet.models.build import build_model
    from directdet.models.checkpoint import load_checkpoint

    device = _device(device)
    if precision not in (None, "fp32", "bf16", *(("tf32", "fp16") if device != "cpu" else ())):
        raise UserError(f"precision {precision!r}: torch takes fp32 or bf16, and on a GPU tf32 or fp16")
    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = load_checkpoint(path)
    preprocess = Preprocess.from_dict(checkpoint["preprocess"], str(path))
    try:
        model = build_model(checkpoint["model_config"])
        model.load_state_dict(checkpoint["model"])
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: the checkpoint does not fit its own model_config: {reason}") from None
    backend = TorchBackend(model.eval(), device, precision or "fp32", threads, compiled)
    meta = {key: checkpoint.get(key) for key in ("recipe", "phase")}
    return TorchPredictor(backend, preprocess, checkpoint["classes"], checkpoint["category_ids"], str(path), meta)


def _device(device: str) -> str:
    """A torch device name that exists here."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise UserError(f"device {device!r}: torch runs on auto, cpu, cuda or cuda:N")
    if kind == "cuda" and (not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count()):
        raise UserError(f"device {device}: torch finds no such GPU here; use device cpu")
    return device


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Every module in eval mode; afterwards each as it was (fixed BN layers differ from the rest)."""
    modes = [(module, module.training) for module in model.modules() if module.training]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
