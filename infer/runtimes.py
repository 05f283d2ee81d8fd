"""Loading a trained or exported detector, whatever runs it: `load(path)` gives a `Detector`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import UserError
from .artefact import META_FILE, Artefact, read_artefact, read_meta
from .decode import check_raw, to_detections
from .detections import Detections
from .network_input import NetworkInput
from .preprocess import Placement, Preprocess

# What can run each kind of model; the first is what runtime="auto" takes.
RUNTIMES = {
    "onnx": ("onnxruntime", "openvino"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
    "checkpoint": ("torch",),
}
CHECKPOINT_SUFFIXES = (".pt", ".pth")
_CHECKPOINTS = ("best.pt", "last.pt")


class Backend(Protocol):
    """One loaded network.

    Attributes:
        runtime: its name, a value of `RUNTIMES`.
        info: what really runs: at least provider, device, precision, versions.
        input: what it takes.
        batch: the only batch size it takes, or None for any up to max_batch.
        max_batch: the most images of a run, or None where there is no limit.
        canvas: the only (H, W) it takes, or None for any.
    """

    runtime: str
    info: dict[str, Any]
    input: NetworkInput
    batch: int | None
    max_batch: int | None
    canvas: tuple[int, int] | None

    def run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        """A batch of its input -> num, boxes, scores, labels[, masks]; returns when the results are on the host."""
        ...


class Detector:
    """A network with its preprocessing and class names: images in, `Detections` out."""

    def __init__(
        self,
        backend: Backend,
        preprocess: Preprocess,
        classes: Sequence[str],
        category_ids: Sequence[int],
        source: str = "model",
        meta: dict[str, Any] | None = None,
    ) -> None:
        self.backend = backend
        self.preprocess = preprocess
        self.classes = tuple(classes)
        self.category_ids = tuple(int(number) for number in category_ids)
        self.source = source
        self.meta = meta or {}
        if preprocess.fixed and backend.canvas not in (None, tuple(preprocess.size)):
            raise UserError(
                f"{source}: the network takes {backend.canvas[0]}x{backend.canvas[1]} pixels (H x W), its "
                f"preprocessing makes {preprocess.size[0]}x{preprocess.size[1]}; export again"
            )

    @property
    def runtime(self) -> str:
        """Name of the runtime: onnxruntime, openvino, tensorrt, tensorrt-rtx or torch."""
        return self.backend.runtime

    @property
    def info(self) -> dict[str, Any]:
        """What really runs it: provider, device, precision, threads, library versions."""
        return self.backend.info

    def describe(self) -> dict[str, Any]:
        """Plain values for reports."""
        return {
            "source": self.source,
            "runtime": self.runtime,
            **self.info,
            "size": [int(edge) for edge in self.preprocess.size],
            "fixed_size": self.preprocess.fixed,
            "batch": self.backend.batch,
            "max_batch": self.backend.max_batch,
            "input": self.backend.input.dtype,
            "classes": len(self.classes),
            "recipe": self.meta.get("recipe"),
        }

    def run(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run the network alone.

        Args:
            batch: what `prepare` made. A network of a fixed or least number of images gets blank ones besides, whose
                results are cut off again.

        Returns:
            num int32 [B, 1], boxes float32 [B, K, 4] in canvas pixels, scores [B, K], labels int32 [B, K] and, for mask
            models, masks float32 [B, K, 28, 28].

        Raises:
            UserError: the network does not take this size or returns something unexpected.
        """
        wanted, count = self.backend.input, len(batch)
        if batch.dtype != wanted.dtype:
            raise UserError(f"{self.source}: the network takes {wanted.dtype}, got {batch.dtype}; use prepare()")
        canvas = wanted.canvas_of(batch)
        if wanted.canvas not in (None, canvas):
            raise UserError(
                f"{self.source}: the network takes {wanted.canvas[0]}x{wanted.canvas[1]} pixels (H x W), "
                f"got {canvas[0]}x{canvas[1]}"
            )
        if wanted.max_batch is not None and count > wanted.max_batch:
            sizes = f"batches of {'' if wanted.batch else 'up to '}{wanted.max_batch}"
            raise UserError(f"{self.source}: the network takes {sizes}, got {count}; use a smaller batch")
        if count < wanted.min_batch:
            blank = np.zeros((wanted.min_batch - count, *batch.shape[1:]), batch.dtype)
            batch = np.concatenate([batch, blank])
        outputs = check_raw(self.backend.run(np.ascontiguousarray(batch)), len(batch), self.source)
        return outputs if len(batch) == count else tuple(value[:count] for value in outputs)

    def prepare(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, list[Placement]]:
        """The network's input for BGR uint8 images, and their placements; all must get the same canvas.

        The batch is float32 [B, 3, H, W], normalised, or uint8 [B, H, W, 3] where the network's graph normalises.

        Raises:
            ValueError: the preprocessing gives the images canvases of different sizes.
        """
        shapes = {self.preprocess.canvas(self.preprocess.place(*image.shape[:2])) for image in images}
        if len(shapes) != 1:
            raise ValueError(f"these images get canvases of different sizes {sorted(shapes)}; prepare them one by one")
        batch = self.backend.input.empty(len(images), shapes.pop())
        prepare = self.preprocess.letterbox if self.backend.input.channels_last else self.preprocess
        return batch, [prepare(image, out=row)[1] for image, row in zip(images, batch, strict=True)]

    def __call__(self, image: np.ndarray) -> Detections:
        """Detect objects in one image, uint8 [h, w, 3] BGR as OpenCV reads it."""
        batch, placements = self.prepare([image])
        return self.decode(self.run(batch), 0, placements[0])

    def detect_batch(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detections of each image, in order. Neighbours with the same canvas share a batch if the network takes it."""
        found: list[Detections] = []
        for group in self._groups(images):
            batch, placements = self.prepare(group)
            raw = self.run(batch)
            found.extend(self.decode(raw, index, placement) for index, placement in enumerate(placements))
        return found

    def decode(self, raw: Sequence[np.ndarray], index: int, placement: Placement) -> Detections:
        """`to_detections`, with errors naming this model."""
        try:
            found = to_detections(raw, index, placement)
        except UserError as error:
            raise UserError(f"{self.source}: {error}") from None
        if len(found) and int(found.labels.max()) >= len(self.classes):
            raise UserError(f"{self.source}: label {found.labels.max()} of {len(self.classes)} classes; export again")
        return found

    def _groups(self, images: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Runs of images with equal canvases, no longer than the network's batch."""
        groups: list[list[np.ndarray]] = []
        last = None
        for image in images:
            shape = self.preprocess.canvas(self.preprocess.place(*image.shape[:2]))
            full = self.backend.max_batch is not None and groups and len(groups[-1]) >= self.backend.max_batch
            if shape != last or full:
                groups.append([])
            groups[-1].append(image)
            last = shape
        return groups


def find_model(path: str | Path) -> tuple[str, Path]:
    """What MODEL names: ("artefact", folder) or ("checkpoint", file).

    MODEL is an artefact folder (or the model file in it), a run folder or the folder of one of its phases (their
    checkpoints/best.pt, else last.pt; the finetune phase first), or a checkpoint file.

    Raises:
        UserError: nothing there, or nothing of the kind.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: not found; give an artefact folder, a run folder or a checkpoint (.pt)")
    if path.is_file():
        if path.suffix in CHECKPOINT_SUFFIXES:
            return "checkpoint", path
        if (path.parent / META_FILE).is_file():
            return "artefact", path.parent
        raise UserError(f"{path}: no {META_FILE} beside it; give a folder written by `directdet export` or a .pt file")
    if (path / META_FILE).is_file():
        return "artefact", path
    # A run of both phases has a folder for each; the later one is the detector that was asked for.
    phases = [path / name / "checkpoints" for name in ("finetune", "scratch", "pretrain")]
    for folder in (*phases[:2], path / "checkpoints", phases[2], path):
        for name in _CHECKPOINTS:
            if (folder / name).is_file():
                return "checkpoint", folder / name
    raise UserError(
        f"{path}: neither {META_FILE} (artefact) nor checkpoints/{' or checkpoints/'.join(_CHECKPOINTS)} (run folder) "
        "in it; give a folder written by `directdet export` or `directdet train`"
    )


def model_kind(path: str | Path) -> str:
    """A key of `RUNTIMES`: what kind of model `path` is. Reads meta.json of an artefact but not its model file."""
    what, place = find_model(path)
    if what == "checkpoint":
        return what
    kind = read_meta(place / META_FILE)["kind"]
    if kind not in RUNTIMES:
        raise UserError(f"{place / META_FILE}: kind: {kind!r} is not known here; expected one of {', '.join(RUNTIMES)}")
    return kind


def load(
    path: str | Path,
    runtime: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    precision: str | None = None,
) -> Detector:
    """Load a detector for inference.

    Args:
        path: an artefact folder, a run folder or a checkpoint; see `find_model`.
        runtime: "auto", or one of the runtimes that run this kind of model (`RUNTIMES`).
        device: "auto" (a GPU where the runtime can use one, else the CPU), "cpu", "cuda" or "cuda:1", "gpu" (OpenVINO).
        threads: CPU threads of the runtime; None leaves it to the runtime.
        precision: None means "fp32", strictly. OpenVINO also takes "bf16" and "fp16"; ONNX Runtime and torch on a GPU
            take "tf32". An engine's precision was chosen when it was built.

    Raises:
        UserError: there is nothing to load, it is broken, or the runtime cannot run it here.
    """
    if threads is not None and threads < 1:
        raise UserError(f"threads: {threads}; give at least 1")
    what, place = find_model(path)
    if what == "checkpoint":
        _choose(runtime, "checkpoint", place)
        from .torch_runtime import load_torch

        return load_torch(place, device=device, threads=threads, precision=precision)
    artefact = read_artefact(place)
    backend = _backend(artefact, _choose(runtime, artefact.kind, place), device, threads, precision)
    return Detector(
        backend, artefact.preprocess, artefact.classes, artefact.category_ids, str(artefact.folder), artefact.meta
    )


def _choose(runtime: str, kind: str, place: Path) -> str:
    """The runtime to use, checked against the kind of model."""
    possible = RUNTIMES[kind]
    if runtime == "auto":
        return possible[0]
    if runtime not in possible:
        raise UserError(f"{place}: runtime {runtime!r} cannot run a model of kind {kind}; use {' or '.join(possible)}")
    return runtime


def _backend(artefact: Artefact, runtime: str, device: str, threads: int | None, precision: str | None) -> Backend:
    """Open the artefact's model; only the chosen runtime's library is imported."""
    if runtime == "onnxruntime":
        from .onnx_runtime import OnnxBackend

        return OnnxBackend(artefact, device, threads, precision)
    if runtime == "openvino":
        from .openvino_runtime import OpenVinoBackend

        return OpenVinoBackend(artefact, device, threads, precision)
    from .tensorrt_runtime import TensorRTBackend

    return TensorRTBackend(artefact, device, threads, precision)
