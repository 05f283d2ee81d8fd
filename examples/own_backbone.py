"""Define a backbone in one file and train a detector on it.

    python examples/own_backbone.py [FOLDER]

It takes less than a minute on two CPU cores.
"""

import sys
from itertools import pairwise
from pathlib import Path

from torch import Tensor, nn

from directdet.data.synthetic import make_synthetic
from directdet.models.backbones.backbone import Backbone
from directdet.models.backbones.builders import add_backbone
from directdet.recipes.by_name import get_recipe
from directdet.recipes.settings import apply_settings
from directdet.train.log import read_log
from directdet.train.run import train


class Plain(Backbone):
    """3x3 convolutions that halve: images [N, 3, H, W] -> {"c2": [N, C, H/4, W/4], ..., "c5": [N, 8C, H/32, W/32]}."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = {"c2": width, "c3": 2 * width, "c4": 4 * width, "c5": 8 * width}
        self.strides = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
        self.blocks = nn.ModuleList(halved(*pair) for pair in pairwise([3, width, *self.channels.values()]))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = [self.blocks[0](images)]
        for block in self.blocks[1:]:
            maps.append(block(maps[-1]))
        return dict(zip(self.channels, maps[1:], strict=True))

    def stages(self) -> list[list[nn.Module]]:  # for `frozen_stages`
        return [[block] for block in self.blocks]


def halved(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def main(folder: Path) -> None:
    add_backbone("plain", lambda width, norm: Plain(width or 32))
    data = make_synthetic(folder / "data", images_train=32, images_val=4, size=(96, 128))
    settings = ["model.backbone=plain", "model.width=16", "size=96,96", "eval_size=96,96", "base_lr=0.01", "workers=0"]
    settings += ["pretrain.epochs=16", "finetune.epochs=2", "finetune.base_lr=0.002", "warmup_iterations=5"]
    train(apply_settings(get_recipe("retinanet_r18_slim"), settings), data, folder / "run", device="cpu")
    for phase in ("pretrain", "finetune"):
        losses = [row["loss"] for row in read_log(folder / "run" / phase / "log.jsonl") if row["kind"] == "step"]
        print(f"{phase}: loss {losses[0]:.3f} in the first steps, {losses[-1]:.3f} in the last")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-backbone"))
