"""Running a checkpoint, or a model in training, with PyTorch, which is imported only when it is used."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from directdet.common.errors import UserError
from directdet.common.settings import SettingError
from directdet.infer.network_input import NetworkInput
from directdet.infer.predictor import Predictor
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes.library import import_library

if TYPE_CHECKING:
    import torch

    from directdet.infer.runtimes.captured import CapturedCall
    from directdet.models.parts.network import Network

Deployed = Callable[..., "Sequence[torch.Tensor]"]  # images -> num, boxes, scores, labels[, masks]
# Modes belong to the model, which detectors may share, and TF32 to the process: one call at a time changes them.
_LOCK = threading.RLock()
_KEPT_SIZES = 48  # (1333, 800) with padding to 32 gives about 40 canvas sizes
_KEPT_GRAPHS = 8  # each keeps its own buffers on the GPU


class TorchBackend:
    """A PyTorch detector; see `predictor.Backend`.

    The deployed form depends on the canvas size, so one is kept for each of the last 48 sizes. It shares the model's
    modules and weights: a model in training is evaluated in its current state, and every call restores its train/eval
    modes. Calls of several threads run one after the other, those of other torch backends included.

    Args:
        model: built by `models.build.build_model`.
        device: "cpu", "cuda" or "cuda:N"; the model is moved there.
        precision: None keeps torch's settings, "fp32" switches TF32 off and "tf32" on (GPU only); "bf16" and "fp16" run
            under autocast.
        threads: only recorded; `load_torch` sets it.
        compiled: compile the deployed form with `torch.compile`, once for each canvas size.
        captured: replay the deployed form as a CUDA graph (GPU only), from the second batch of a shape on. The weights
            must stay the same tensors.
    """

    runtime = "torch"

    def __init__(
        self,
        model: Network,
        device: str,
        precision: str | None = None,
        threads: int | None = None,
        compiled: bool = False,
        captured: bool = False,
    ) -> None:
        import torch

        self._device = torch.device(device)
        self.model: Network = model.to(self._device)
        self.input = NetworkInput(channels=model.in_channels)
        self._precision, self._compiled, self._captured = precision, compiled, captured
        self._graphs: OrderedDict[tuple[int, ...], CapturedCall | None] = OrderedDict()  # None: seen once
        self._deployed: OrderedDict[tuple[int, int], Deployed] = OrderedDict()
        gpu = self._device.type == "cuda"
        self.info: dict[str, Any] = {
            "provider": torch.cuda.get_device_name(self._device) if gpu else "torch cpu",
            "device": str(self._device),
            "precision": precision or ("fp32, tf32 as torch is set" if gpu else "fp32"),
            "threads": threads,
            "compiled": compiled,
            "captured": captured,
            "versions": {"torch": torch.__version__, **({"cuda": torch.version.cuda} if gpu else {})},
        }

    def at_size(self, size: tuple[int, int]) -> TorchBackend:
        """A backend of the network for inputs of `size`, this one where it takes any; ValueError as of `at_size`."""
        model = self.model.at_size(size)
        if model is self.model:
            return self
        how = self._precision, self.info["threads"], self._compiled, self._captured
        return TorchBackend(model, str(self._device), *how)

    def _deploy(self, size: tuple[int, int]) -> Deployed:
        """The deployed form for one canvas size."""
        if size not in self._deployed:
            from directdet.models.build import deploy_model

            try:
                deployed: Deployed = deploy_model(self.model, size)
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
        with _LOCK, torch.no_grad(), _evaluating(self.model), self._tf32(), self._autocast():
            deployed = self._deploy((images.shape[2], images.shape[3]))
            graph = self._graphs.get(images.shape)
            if graph is not None:
                self._graphs.move_to_end(images.shape)
                return graph(images)
            outputs = deployed(torch.from_numpy(images).to(self._device))
            results = [(value.float() if value.is_floating_point() else value).cpu().numpy() for value in outputs]
            if self._captured:
                self._capture(deployed, images, results)
            return results

    def _capture(self, deployed: Deployed, images: np.ndarray, results: list[np.ndarray]) -> None:
        """Capture the call for batches of this shape, unless this is the first one; its replay must give `results`."""
        from directdet.infer.runtimes.captured import CapturedCall, same_scores

        graph = None
        if images.shape in self._graphs:
            try:
                graph = CapturedCall(deployed, images.shape, self._device)
                wrong = None if same_scores(graph(images), results) else "its replay finds something else"
            except RuntimeError as error:
                wrong = " ".join(str(error).split())[:200]
            if wrong is not None:
                self._captured = self.info["captured"] = False
                self._graphs.clear()
                warnings.warn(f"the network runs without a CUDA graph: {wrong}", stacklevel=4)
                return
        self._graphs[images.shape] = graph
        if len(self._graphs) > _KEPT_GRAPHS:
            self._graphs.popitem(last=False)

    def _autocast(self) -> contextlib.AbstractContextManager[object, bool | None]:
        """Matrix products and convolutions in 16 bits if `precision` is bf16 or fp16; the rest stays in float32."""
        import torch

        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        if self._precision not in kinds:
            return contextlib.nullcontext()
        # A captured call must not use weights that were converted, and forgotten, outside of it.
        return torch.autocast(self._device.type, kinds[self._precision], cache_enabled=not self._captured)

    @contextlib.contextmanager
    def _tf32(self) -> Iterator[None]:
        """Set TF32 according to `precision`, and restore it afterwards."""
        if self._device.type != "cuda" or self._precision is None:
            yield
            return
        from torch.backends import cuda, cudnn

        before = cudnn.allow_tf32, cuda.matmul.allow_tf32
        try:
            cudnn.allow_tf32 = cuda.matmul.allow_tf32 = self._precision == "tf32"
            yield
        finally:
            cudnn.allow_tf32, cuda.matmul.allow_tf32 = before


class TorchPredictor(Predictor):
    """A `Predictor` around a PyTorch model."""

    @classmethod
    def from_model(
        cls,
        model: Network,
        preprocess: Preprocess,
        classes: Sequence[str],
        category_ids: Sequence[int],
        device: str | torch.device = "cpu",
        source: str = "model",
    ) -> TorchPredictor:
        """Wrap a model, e.g. one in training, to measure its AP. It runs in eval mode; its own modes are restored."""
        return cls(TorchBackend(model, str(device)), preprocess, classes, category_ids, source)


def load_torch(
    path: str | Path,
    device: str = "auto",
    threads: int | None = None,
    precision: str | None = None,
    compiled: bool = False,
    captured: bool | None = None,
) -> TorchPredictor:
    """Load a checkpoint file for inference.

    Args:
        path: a .pt file written by training.
        device: "auto" (a GPU if torch has one), "cpu", "cuda" or "cuda:N".
        threads: torch's CPU threads, a setting of the whole process; None leaves it unchanged.
        precision: None or "fp32" (TF32 off), "bf16" (autocast), or "tf32" or "fp16" (autocast; GPU only).
        compiled: see `TorchBackend`.
        captured: on a GPU, fold batch normalisations as in an exported model, and replay calls as CUDA graphs. None:
            together with `compiled`.

    Raises:
        UserError: torch is not installed, or the checkpoint is missing, broken or does not match its own model.
    """
    import_library("torch", f"{path}: a checkpoint needs torch, which", "use an exported artefact instead")
    import torch

    from directdet.models.build import build_model
    from directdet.models.checkpoint import load_checkpoint

    device = _device(device)
    if precision not in (None, "fp32", "bf16", *(("tf32", "fp16") if device != "cpu" else ())):
        raise UserError(f"precision {precision!r}: torch takes fp32 or bf16, and on a GPU tf32 or fp16")
    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = load_checkpoint(path)
    if checkpoint.get("phase") == "montage":
        raise UserError(
            f"{path}: holds a backbone trained by Montage, not a detector; fine-tune one: `directdet train RECIPE "
            f"--init {path}`"
        )
    preprocess = Preprocess.from_dict(checkpoint["preprocess"], str(path))
    try:
        model = build_model(checkpoint["model_config"])
        model.load_state_dict(checkpoint["model"])
    except SettingError as error:
        raise UserError(f"{path}: model_config: {error}") from None
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: the checkpoint does not match its own model_config: {reason}") from None
    if len(preprocess.mean) != model.in_channels:
        raise UserError(
            f"{path}: the network takes {model.in_channels} channels, its preprocessing gives {len(preprocess.mean)}"
        )
    precision, captured = precision or "fp32", device != "cpu" and (compiled if captured is None else captured)
    backend = TorchBackend(model.eval(), device, precision, threads, compiled, captured)
    if captured:
        from directdet.infer.runtimes.captured import prepare_for_inference

        prepare_for_inference(backend.model, precision)
    meta = {key: checkpoint.get(key) for key in ("recipe", "phase", "model_config")}
    return TorchPredictor(backend, preprocess, checkpoint["classes"], checkpoint["category_ids"], str(path), meta)


def _device(device: str) -> str:
    """The name of a torch device that exists here."""
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
    """Put every module into eval mode, and restore each one afterwards (fixed BN layers differ from the rest)."""
    modes = [(module, module.training) for module in model.modules() if module.training]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
