"""Forward and backward pass of Mask R-CNN R50-FPN at 224x224, batch 2, on a CPU: ours compared with torchvision's.

Same weights, the same number of RoIs (512 an image), eight objects in each picture. Variants take turns in one process;
the ratios are of the passes of one round. Then the backbone and FPN alone at 448x448, where normalisation costs most:
live, fixed, and fixed with the stem and first stage frozen as in the paper's code.

    python scripts/train_step.py
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import ROOT, parser, write_results

sys.path.insert(0, str(ROOT / "tests"))
from twin import build_twin, smooth_images

from directdet.models.parts.norm import fix_batch_norm
from directdet.models.parts.targets import Targets
from directdet.models.two_stage.config import RCNNConfig
from directdet.models.two_stage.loss import rcnn_losses
from directdet.models.two_stage.network import RCNN

SIZE, BATCH, OBJECTS = 224, 2, 8


def make_targets() -> tuple[Targets, list[dict]]:
    """The same random boxes for ours and for torchvision; masks fill their boxes."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(BATCH, OBJECTS, 2, generator=generator) * SIZE * 0.5
    side = 20 + torch.rand(BATCH, OBJECTS, 2, generator=generator) * SIZE * 0.4
    boxes = torch.cat([corner, corner + side], -1)
    labels = torch.randint(0, 80, (BATCH, OBJECTS), generator=generator)
    valid = torch.ones(BATCH, OBJECTS, dtype=torch.bool)
    masks = torch.ones(BATCH, OBJECTS, 56, 56, dtype=torch.uint8)
    theirs = []
    for image in range(BATCH):
        full = torch.zeros(OBJECTS, SIZE, SIZE, dtype=torch.uint8)
        for index, (x1, y1, x2, y2) in enumerate(boxes[image].int().tolist()):
            full[index, y1:y2, x1:x2] = 1
        theirs.append({"boxes": boxes[image], "labels": labels[image] + 1, "masks": full})
    return Targets(boxes, labels, valid, torch.full((BATCH, 2), float(SIZE)), masks), theirs


def ours(model: RCNN, images: torch.Tensor, targets: Targets, bf16: bool = False) -> float:
    """One forward and backward pass; returns how many mask RoIs were dropped for lack of a slot."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        losses, counts = rcnn_losses(model, model(images), targets)
    model.zero_grad(set_to_none=True)
    torch.stack([*losses.values()]).sum().backward()
    return float(counts["mask_dropped"])


def backbone_passes(turns: int) -> dict[str, dict[str, float]]:
    """Seconds of a forward and backward pass of backbone and FPN, by what happens to batch normalisation."""
    live = RCNN(RCNNConfig(num_classes=80)).train()
    fixed, frozen = copy.deepcopy(live), copy.deepcopy(live)
    for model in (fixed, frozen):
        fix_batch_norm(model)
    for modules in frozen.backbone.stages()[:2]:
        for module in modules:
            module.requires_grad_(False)
    images = smooth_images(BATCH, (448, 448), 1)
    models = {"live BN": live, "fixed BN": fixed, "fixed BN, stem and stage 1 frozen": frozen}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(turns):
        for name, model in models.items():
            model.zero_grad(set_to_none=True)
            start = time.perf_counter()
            torch.stack([level.mean() for level in model.fpn(model.backbone(images)).values()]).sum().backward()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    rows = {}
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds["live BN"], strict=True))
        rows[f"backbone and FPN at 448, {name}"] = {"median_s": statistics.median(times), "to_live": ratio}
        print(f"backbone and FPN at 448, {name:34s} {statistics.median(times):5.2f} s   {ratio:.2f} of live BN's")
    return rows


def main() -> None:
    given = parser(__doc__).parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model = RCNN(RCNNConfig(num_classes=80, mask_slots=32)).train()
    twin = build_twin(model).train()
    transform: Any = twin.transform
    transform.min_size, transform.max_size = (SIZE,), SIZE
    fixed = copy.deepcopy(model)
    fix_batch_norm(fixed)
    targets, theirs = make_targets()
    images = smooth_images(BATCH, (SIZE, SIZE), 0)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    images_last = images.contiguous(memory_format=torch.channels_last)

    def torchvision_step() -> None:
        loss = torch.stack([*twin(list(images), theirs).values()]).sum()
        twin.zero_grad(set_to_none=True)
        loss.backward()

    steps: dict[str, Callable[[], object]] = {
        "torchvision": torchvision_step,
        "directdet": lambda: ours(model, images, targets),
        "directdet, fixed BN": lambda: ours(fixed, images, targets),
        "directdet, channels last": lambda: ours(last, images_last, targets),
    }
    if torch.cpu._is_avx512_bf16_supported():
        steps["directdet, channels last, bf16"] = lambda: ours(last, images_last, targets, bf16=True)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(given.rounds * 2 + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            dropped = step()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - start)
            assert not dropped, f"{name}: {dropped} mask RoIs dropped; the comparison would not be fair"
    rows = {}
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds["torchvision"], strict=True))
        rows[name] = {"median_s": statistics.median(times), "to_torchvision": ratio}
        print(f"{name:32s} {rows[name]['median_s']:6.2f} s   {ratio:.2f} of torchvision's")
    pairs = zip(seconds["directdet, fixed BN"], seconds["directdet"], strict=True)
    rows["directdet, fixed BN"]["to_live"] = statistics.median(a / b for a, b in pairs)
    print(f"fixed BN takes {rows['directdet, fixed BN']['to_live']:.2f} of live BN's time")
    rows |= backbone_passes(given.rounds * 2 + 1)
    settings = {"size": SIZE, "batch": BATCH, "rois": 512, "mask_slots": 32, "threads": given.threads}
    print(write_results("train_step_cpu", settings, rows))


if __name__ == "__main__":
    main()
