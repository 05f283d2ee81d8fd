"""What each process of torchrun reads in test_train_shards.py: shards_worker.py DATA OUT."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch

from directdet.data.augment.transforms import PretrainTransform
from directdet.data.dataset import load_dataset
from directdet.data.loader import make_loader
from directdet.data.sampling import Sampling
from directdet.train import distributed

EPOCH, RESUMED_AT = 1, 2


def read(data: str, rank: int = 0, processes: int = 1, workers: int = 0) -> dict[str, list]:
    """Of an epoch, and of one resumed: a digest of each picture as it is trained on; and the images, in their order."""
    setting = Sampling(4 // processes, seed=3, rank=rank, world_size=processes)
    loader = make_loader(load_dataset(data, "train"), PretrainTransform(64), setting, workers=workers)
    found: dict[str, list] = {}
    for name, start in (("whole", 0), ("resumed", RESUMED_AT)):
        loader.set_epoch(EPOCH, start)
        batches = [[hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in images] for images, _ in loader]
        found[name] = batches
        loader.set_epoch(EPOCH, start)
        found[f"{name} images"] = [[entry[2] for entry in batch] for batch in loader._sampler]
    return found


if __name__ == "__main__":
    distributed.start(torch.device("cpu"))
    found = read(sys.argv[1], distributed.rank(), distributed.world_size(), workers=2)
    Path(sys.argv[2], f"{distributed.rank()}.json").write_text(json.dumps(found))
    distributed.stop()
