"""Pack a dataset into parts, small enough to be copied one by one to a GPU machine without network.

DATA is a folder with train.json, val.json (COCO) and train.tar, val.tar, whose members are train/NAME.jpg and
val/NAME.jpg for the NAME.jpg of the JSON. Each part is a tar file that holds some of the pictures; the first holds the
annotations and a dataset.toml too. On the GPU machine, `scripts/gpu_evidence.py --unpack PART` puts them together
again.

    python scripts/gpu_pack.py DATA --out parts --part-mib 40 --val-images 620
"""

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

TOML = """[train]
images = "train"
annotations = "train.json"
[val]
images = "val"
annotations = "val.json"
"""
BLOCK = 512


def thinned(content: dict, count: int | None) -> dict:
    """A COCO file with `count` of its pictures, spread evenly over it, or all of them."""
    images = content["images"]
    if count is not None and count < len(images):
        images = [images[number * len(images) // count] for number in range(count)]
    kept = {image["id"] for image in images}
    annotations = [one for one in content["annotations"] if one["image_id"] in kept]
    return {**content, "images": images, "annotations": annotations}


def members(data: Path, val_images: int | None) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file to pack."""
    yield "dataset.toml", TOML.encode()
    wanted: dict[str, set[str]] = {}
    for split, count in (("train", None), ("val", val_images)):
        content = thinned(json.loads((data / f"{split}.json").read_text(encoding="utf-8")), count)
        wanted[split] = {f"{split}/{image['file_name']}" for image in content["images"]}
        yield f"{split}.json", json.dumps(content).encode()
    for split, names in wanted.items():
        with tarfile.open(data / f"{split}.tar") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.name in names else None
                if content is not None:  # folders have none
                    yield member.name, content.read()


def pack(data: Path, out: Path, part_bytes: int, val_images: int | None = None) -> list[Path]:
    """Write the parts; each is at most `part_bytes` long, unless a single member is longer.

    `val_images`: only this many pictures of val, spread over it, because evaluation takes time from training.
    """
    out.mkdir(parents=True, exist_ok=True)
    parts: list[Path] = []
    archive: tarfile.TarFile | None = None
    size = 0
    for name, content in members(data, val_images):
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
    if archive is not None:
        archive.close()
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part-mib", type=float, default=40.0)
    parser.add_argument("--val-images", type=int, help="only this many of val  [default: all]")
    arguments = parser.parse_args()
    for path in pack(arguments.data, arguments.out, int(arguments.part_mib * 2**20), arguments.val_images):
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
