"""Before they train together, the processes of a run compare what each is about to train.

With other epochs they would wait for each other for half an hour, with another seed, rate or code they would train
something that no single command describes, without a word. They compare through torchrun's key-value store, so that a
process that fails on its way here is told to the others as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from directdet import __version__
from directdet.common.errors import UserError
from directdet.data.flat.arrays import all_objects, image_files, image_sizes
from directdet.data.records import Dataset
from directdet.recipes.recipe import Recipe
from directdet.train.run_file import flat_settings

PATIENCE = timedelta(minutes=5)  # for another process to start and to read its data
_FAREWELL = timedelta(seconds=10)  # for the others to read why this one ends
_SHOWN = 4  # differences in the message
_PACKAGE = Path(__file__).resolve().parents[2]
_meetings = itertools.count()
Facts = dict[str, str]


@contextlib.contextmanager
def meeting() -> Iterator[Meeting | None]:
    """The processes of this run, which torchrun started; None where there is one alone.

    An error inside the block is told to the others, which wait in `Meeting.agree`.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or dist.is_initialized() or "MASTER_ADDR" not in os.environ:
        yield None
        return
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, rank, _ = next(rendezvous("env://", timeout=PATIENCE))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(
            f"torchrun: the main process at {address} does not answer ({reason}); see its own error"
        ) from None
    met = Meeting(store, rank, size)
    try:
        yield met
    except BaseException as error:
        met.fail(str(error) or type(error).__name__)
        raise


class Meeting:
    """The processes of a run before they are joined for training.

    Attributes:
        store: what `distributed.start` joins them through.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.store = store
        # A process may train twice, with the same store.
        self._own, self._rank, self._size = PrefixStore(f"directdet{next(_meetings)}", store), rank, size
        self._told = False

    def agree(self, facts: Facts) -> None:
        """Return once every process has come here with equal facts; they wait no longer than PATIENCE.

        Raises:
            UserError: another process failed or did not come, or its facts differ: in what, in every process.
        """
        self._tell({"facts": facts})
        found = [self._read(rank) for rank in range(self._size)]
        self._read_all()
        for rank, message in enumerate(found):
            if "failed" in message:
                raise UserError(f"rank {rank} ended before training began: {message['failed']}")
        for rank, message in enumerate(found):
            differing = _differences(message["facts"], found[0]["facts"])
            if differing:
                more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
                raise UserError(
                    f"rank {rank} is not about to train what rank 0 is: {'; '.join(differing[:_SHOWN])}{more}; start "
                    "all processes with the same command, data and code"
                )

    def fail(self, reason: str) -> None:
        """Tell the others why this process ends, if they wait for it."""
        if self._told:
            return
        with contextlib.suppress(RuntimeError):
            self._tell({"failed": reason[:500]})
        self._read_all()

    def _tell(self, message: dict[str, Any]) -> None:
        self._told = True
        self._own.set(f"rank/{self._rank}", json.dumps(message))

    def _read(self, rank: int) -> dict[str, Any]:
        try:
            self._own.wait([f"rank/{rank}"], PATIENCE)
            return json.loads(self._own.get(f"rank/{rank}"))
        except RuntimeError:  # the store is gone, or the time is up
            seconds = PATIENCE.total_seconds()
            raise UserError(
                f"rank {rank} was lost, or has not read its data within {seconds:.0f} s; see its own error"
            ) from None

    def _read_all(self) -> None:
        """Note that this process needs the store no more; the main one, with which it may end, waits for all others."""
        with contextlib.suppress(RuntimeError):
            self._own.set(f"read/{self._rank}", "1")
            if self._rank == 0:
                self._own.wait([f"read/{rank}" for rank in range(1, self._size)], _FAREWELL)


def facts_of(
    recipe: Recipe, asked: list[str], train: Dataset, val: Dataset | None, seed: int, device: str, files: list[Path]
) -> Facts:
    """What has to be equal in all processes, by names that a message can show.

    Args:
        asked: names of the phases that are run, and options.
        files: checkpoints that the run goes on from or starts from, where they exist.
    """
    facts = {"what is run": " ".join(asked), "seed": str(seed), "device": device, "version": __version__}
    facts |= {"torch": torch.__version__, "code": _code()}
    facts |= {name: str(value) for name, value in flat_settings(asdict(replace(recipe, given=())))}
    for name, dataset in (("train", train), ("val", val)):
        facts[f"images of {name}"] = "none" if dataset is None else str(len(dataset))
        facts[f"annotations of {name}"] = "none" if dataset is None else _annotations(dataset)
    for path in files:
        facts[str(Path(*path.parts[-3:]))] = _sha256(path) if path.is_file() else "not there"
    return facts


def _differences(one: Facts, other: Facts) -> list[str]:
    names = [*other, *(name for name in one if name not in other)]
    return [
        f"{name}: {_short(one.get(name, 'nothing'))}, not {_short(other.get(name, 'nothing'))}"
        for name in names
        if one.get(name) != other.get(name)
    ]


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _annotations(dataset: Dataset) -> str:
    """A short digest of what is learnt from; pictures count by their names."""
    digest = hashlib.sha256(repr((dataset.classes, dataset.category_ids)).encode(errors="surrogatepass"))
    for number, path in image_files(dataset.records):
        digest.update(f"{number} {path.name}\n".encode(errors="surrogatepass"))
    objects = all_objects(dataset.records)
    digest.update(image_sizes(dataset.records).tobytes())
    for values in (objects.counts, objects.boxes, objects.crowd, objects.difficult, objects.weights):
        digest.update(values.tobytes())
    digest.update(objects.labels.astype(np.int64).tobytes())
    return f"digest {digest.hexdigest()[:12]}"


def _code() -> str:
    """A short digest of the package and of the user's own files that are loaded."""
    from directdet.common.plugins import listed_files

    digest = hashlib.sha256()
    for path in [*sorted(_PACKAGE.rglob("*.py")), *map(Path, listed_files())]:
        if path.is_file():
            digest.update(path.name.encode(errors="surrogatepass") + b"\0" + path.read_bytes())
    return f"digest {digest.hexdigest()[:12]}"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return f"digest {hashlib.file_digest(stream, 'sha256').hexdigest()[:12]}"
