"""A made-up dataset of small objects, in COCO's layout, for the comparison of first layers (ScratchDet's Table 2).

Disks, squares, triangles and stars of 23 pixels in the middle and 35 at most, on pictures of 208x208, which is SSD's
input at `--scale tiny`, so that nothing is resized. The same bytes each time.

    python scripts/small_objects.py OUT
    directdet reproduce scratchdet/table2 --data OUT --out DIR --scale tiny --budget 95m --seeds 3
"""

import argparse
from pathlib import Path

from directdet.common.errors import UserError
from directdet.data.synthetic import make_synthetic

SIDE = 208  # pixels, of the pictures
TRAIN, VAL = 1000, 200  # pictures
SHAPES = (10, 20)  # of a picture
RADIUS = (0.04, 0.08)  # share of the side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder that is made")
    parser.add_argument("--train", type=int, default=TRAIN, help="pictures to train on (default: %(default)s)")
    parser.add_argument("--val", type=int, default=VAL, help="pictures to measure mAP on (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        make_synthetic(arguments.out, arguments.train, arguments.val, (SIDE, SIDE), shapes=SHAPES, radius=RADIUS)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
