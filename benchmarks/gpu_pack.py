"""Pack a dataset into parts, small enough to travel one by one to a GPU machine without network.

DATA is a folder with train.json, val.json (COCO) and train.tar, val.tar, whose members are train/NAME.jpg and
val/NAME.jpg. Each part is a tar file that holds some of the pictures; the first holds the annotations and a
dataset.toml too. On the GPU machine, `benchmarks/gpu_evidence.py --unpack PART` puts them together again.

    python benchmarks/gpu_pack.py DATA --out parts --part-mib 40
"""

import argparse
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

TOML = """[train]
images = "."
annotations = "train.json"
[val]
images = "."
annotations = "val.json"
"""
BLOCK = 512


def members(data: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of everything that travels."""
    yield "dataset.toml", TOML.encode()
    for split in ("train", "val"):
        yield f"{split}.json", (data / f"{split}.json").read_bytes()
    for split in ("train", "val"):
        with tarfile.open(data / f"{split}.tar") as archive:
            for member in archive:
                if member.isfile():
                    yield member.name, archive.extractfile(member).read()


def pack(data: Path, out: Path, part_bytes: int) -> list[Path]:
    """Write the parts; each is at most `part_bytes` long, unless a single member is longer."""
    out.mkdir(parents=True, exist_ok=True)
    parts: list[Path] = []
    archive, size = None, 0
    for name, content in members(data):
        needed = BLOCK + -(-len(content) // BLOCK) * BLOCK
        if archive is None or size + needed > part_bytes - 20 * BLOCK:
            if archive is not None:
                archive.close()
            parts.append(out / f"part{len(parts)}.tar")
            archive, size = tarfile.open(parts[-1], "w"), 0  # noqa: SIM115 - closed when it is full
        header = tarfile.TarInfo(name)
        header.size = len(content)
        archive.addfile(header, io.BytesIO(content))
        size += needed
    archive.close()
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part-mib", type=float, default=40.0)
    arguments = parser.parse_args()
    for path in pack(arguments.data, arguments.out, int(arguments.part_mib * 2**20)):
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
