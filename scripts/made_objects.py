"""A made-up dataset of shapes, in COCO's layout with masks, to decide comparisons that a CPU's real sets cannot.

Disks, squares, triangles and stars on pictures of 208x208, which is SSD's input at `--scale tiny`, so that nothing is
resized. As they come they are small, 23 pixels in the middle and 35 at most, for the comparison of first layers
(ScratchDet's Table 2), and many, so that little training is enough. The same bytes each time.

    python scripts/made_objects.py OUT
    python scripts/made_objects.py OUT --shapes 2 6 --radius 0.09 0.26      # few and large
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
    parser.add_argument("--val", type=int, default=VAL, help="pictures to measure AP on (default: %(default)s)")
    parser.add_argument("--shapes", type=int, nargs=2, default=SHAPES, metavar=("FEWEST", "MOST"), help="of a picture")
    parser.add_argument("--radius", type=float, nargs=2, default=RADIUS, metavar=("LEAST", "MOST"), help="of the side")
    given = parser.parse_args()
    few, many = given.shapes
    least, most = given.radius
    try:
        make_synthetic(given.out, given.train, given.val, (SIDE, SIDE), shapes=(few, many), radius=(least, most))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
