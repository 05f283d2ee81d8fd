"""What PyTorch itself does not repeat: its detections under noise of about the size of rounding errors."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from directdet.data.pixels.format import STD
from directdet.export.precision import PRODUCTS
from directdet.infer.detections import Detections
from directdet.infer.predictor import Predictor
from directdet.infer.preprocess import Placement

DISTURBED_RUNS = 8  # with 3, ties on a blank picture were missed: there are many ways to break them


def disturbed_runs(
    reference: Predictor, model: nn.Module, batch: np.ndarray, placement: Placement, disturbance: float
) -> list[Detections]:
    """What the reference finds in a batch of one picture, under noise about as large as a rounding error.

    Args:
        reference, model: in PyTorch: the detector, and its network.
        batch, placement: the picture's canvas, float32 [1, C, H, W], and where it lies there.
        disturbance: standard deviation of the noise, of a normalised input.
    """
    eight = reference.preprocess.dtype == "uint8"
    # For inputs that are not divided by ImageNet's std; those of other types are divided by their own.
    unit = float(np.mean(STD) / np.mean(reference.preprocess.std)) if eight else 1.0
    found = []
    for seed in range(DISTURBED_RUNS):
        noise = np.random.default_rng(seed).normal(0.0, disturbance * unit, batch.shape).astype(np.float32)
        with _noisy_products(model, disturbance / 10, seed):
            found.append(reference.decode(reference.run(batch + noise), 0, placement))
    return found


@contextlib.contextmanager
def _noisy_products(model: nn.Module, relative: float, seed: int) -> Iterator[None]:
    """Noise on the output of layers that multiply by weights, relative to the output's root mean square.

    Noise on the input alone does not get past features that are all dead: behind them a score is its layer's bias, the
    same at every place to the last bit, and it depends on a runtime's top k which of them NMS starts from.
    """
    generator = torch.Generator().manual_seed(seed)

    def add_noise(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        noise = torch.randn(output.shape, generator=generator).to(output.device, output.dtype)
        return output + noise * (relative * output.square().mean().sqrt())

    layers = [module for module in model.modules() if isinstance(module, tuple(PRODUCTS))]
    hooks = [layer.register_forward_hook(add_noise) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
