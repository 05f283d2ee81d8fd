"""A deployed network on an NVIDIA GPU as one CUDA graph: hundreds of small kernels, launched by a single call.

The deployed forms have static shapes and never wait for the host, so a whole call, with its copies from and to the
host, can be recorded once and replayed. Buffers are fixed: nothing is allocated in a call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.backends import cudnn

from directdet.models.build import fold_model
from directdet.models.parts.network import Network

WARMUP = 3  # calls before the capture, in which cuDNN chooses its algorithms and torch.compile compiles
SAME_SCORE = 0.02
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def prepare_for_inference(model: Network, precision: str | None) -> None:
    """Make a network on a GPU as fast as its arithmetic allows, in place: it can no longer be trained.

    Its batch normalisations are folded into the convolutions, its maps are channels-last and, in fp16 and bf16, its
    layers' weights are stored in 16 bits, so that autocast need not convert them in every call.
    """
    fold_model(model)
    model.to(memory_format=torch.channels_last)
    if precision in HALVES:
        for module in model.modules():
            if isinstance(module, _LAYERS):
                module.to(HALVES[precision])


class CapturedCall:
    """deployed(images) for batches of one shape, float32 [B, 3, H, W] on the host -> its outputs on the host.

    One call at a time: all of them use the same buffers.

    Args:
        deployed: waits for nothing and has static shapes.
        shape: of the batches.
        device: a CUDA device.

    Raises:
        RuntimeError: something in `deployed` cannot be captured.
    """

    def __init__(self, deployed: Callable[[Tensor], Sequence[Tensor]], shape: tuple[int, ...], device: torch.device):
        self._stream = torch.cuda.Stream(device)
        self._graph = torch.cuda.CUDAGraph()
        self._given = torch.zeros(shape, pin_memory=True)
        given = torch.zeros(shape, device=device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream), _fastest_convolutions():
            outputs = [_plain(value) for value in deployed(given)]
            for _ in range(WARMUP - 1):
                deployed(given)
        self._stream.synchronize()
        self._results = [torch.empty(v.shape, dtype=v.dtype, pin_memory=True) for v in outputs]
        with _usable_generator(device), torch.cuda.graph(self._graph, stream=self._stream), _fastest_convolutions():
            given.copy_(self._given, non_blocking=True)
            for result, value in zip(self._results, deployed(given), strict=True):
                result.copy_(_plain(value), non_blocking=True)

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        self._given.copy_(torch.from_numpy(images))
        with torch.cuda.stream(self._stream):
            self._graph.replay()
        self._stream.synchronize()
        return [result.numpy().copy() for result in self._results]


def same_scores(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> bool:
    """Whether two outputs are of the same images: their scores differ by rounding alone, of 16 bits too.

    Another algorithm of cuDNN rounds otherwise, so near scores may change places; sorted as they are, they hardly move.
    """
    return bool(np.allclose(found[2], expected[2], rtol=0, atol=SAME_SCORE))


@contextlib.contextmanager
def _usable_generator(device: torch.device) -> Iterator[None]:
    """A capture that fails leaves the device's random generator waiting for its end, and every later draw raises."""
    index = torch.cuda.current_device() if device.index is None else device.index
    generator = torch.cuda.default_generators[index]
    before = generator.clone_state()
    try:
        yield
    except BaseException:
        generator.graphsafe_set_state(before)
        raise


@contextlib.contextmanager
def _fastest_convolutions() -> Iterator[None]:
    """cuDNN measures its algorithms for each shape, and keeps the fastest."""
    before = cudnn.benchmark
    try:
        cudnn.benchmark = True
        yield
    finally:
        cudnn.benchmark = before


def _plain(value: Tensor) -> Tensor:
    """An output as it leaves: contiguous, its numbers in float32."""
    return (value.float() if value.is_floating_point() else value).contiguous()
