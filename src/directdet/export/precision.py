"""A deployed detector in half precision: half weights and products, float32 wherever digits or range matter.

The result has a type in every operation, as TensorRT's strongly typed networks need it, and its own casts say what is
computed in which type: no runtime has to guess. Only layers that multiply by weights change. A layer casts its input to
the type of its weights; all other operations compute in the widest type of their inputs, by PyTorch's type promotion.
The networks' own code casts raw maps to float32, so that everything after them stays in float32.
"""

from collections import Counter

import torch
from torch import Tensor, nn

from directdet.models.parts.fold import ScaleShift
from directdet.models.parts.layers import L2Norm

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
BF16_OPSET = 22  # the first ONNX operator set whose convolutions take bfloat16
# A layer stays in float32 if it meets values beyond this share of what the type holds. Other pictures may have larger
# values than those looked at, and sums of a few maps are not looked at.
MARGIN = 0.25


class _Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


class _ConvTranspose2d(nn.ConvTranspose2d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(input.to(self.weight.dtype), output_size)


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


class _GroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).to(input.dtype)


PRODUCTS = {nn.Conv2d: _Conv2d, nn.ConvTranspose2d: _ConvTranspose2d, nn.Linear: _Linear}
NORMS = {
    nn.LayerNorm: "layer normalisation",
    nn.GroupNorm: "group normalisation",
    ScaleShift: "batch normalisation without a convolution before it",
    L2Norm: "L2 normalisation",
}
POST_PROCESSING = (
    "softmax and sigmoid: scores near 0 and 1 would tie",
    "anchors, box decoding, RoI coordinates and NMS: half's steps at 1000 pixels are half a pixel (fp16) to 4 (bf16)",
)


def reduce_precision(deployed: nn.Module, precision: str, images: Tensor | None = None) -> list[str]:
    """Change a deployed detector, in place, to hold weights and compute products in "fp16" or "bf16".

    Its input and outputs keep their types. Batch normalisations must have been folded before.

    Args:
        images: normalised float32 [N, 3, H, W], real ones if possible, run one by one to find layers that meet values
            which the type cannot hold. None: only the weights are checked.

    Returns:
        What stays in float32 and why, one line each.
    """
    half = HALVES[precision]
    layers = {name: m for name, m in deployed.named_modules() if type(m) in PRODUCTS}
    limit = torch.finfo(half).max
    weights = {name: _largest([*layer.parameters()]) for name, layer in layers.items()}
    values = _values_met(deployed, layers, images) if images is not None else dict.fromkeys(layers, 0.0)
    kept = []
    for name, layer in layers.items():
        if not weights[name] <= limit:
            kept.append(f"{name}: weights up to {weights[name]:.3g}; {precision} ends at {limit:.5g}")
        elif not values[name] <= MARGIN * limit:
            kept.append(f"{name}: values up to {values[name]:.3g} were met; {precision} ends at {limit:.5g}")
        else:
            layer.to(half)
        layer.__class__ = PRODUCTS[type(layer)]
    norms = Counter()
    for module in deployed.modules():
        norms.update(what for kind, what in NORMS.items() if isinstance(module, kind))
        if type(module) is nn.GroupNorm:
            module.__class__ = _GroupNorm
    kept += [f"{what} ({count}): sums of squares need range and digits" for what, count in norms.items()]
    return [*kept, *POST_PROCESSING]


def _values_met(deployed: nn.Module, layers: dict[str, nn.Module], images: Tensor) -> dict[str, float]:
    """The largest magnitude of each layer's inputs and outputs on these images."""
    largest = dict.fromkeys(layers, 0.0)

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def look(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            largest[name] = max(largest[name], _largest([*inputs, output]))

        return layer.register_forward_hook(look)

    handles = [watch(name, layer) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for image in images:
                deployed(image[None])
    finally:
        for handle in handles:
            handle.remove()
    return largest


def _largest(values: list[Tensor]) -> float:
    """Largest magnitude; nan if any value is nan."""
    return max((float(v.detach().abs().max()) for v in values if v.numel()), default=0.0)
