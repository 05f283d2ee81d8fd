"""Carrying class layers over by name: a detector for other classes keeps what was learned of those that both have."""

from collections.abc import Sequence

from torch import Tensor

# VOC's names of the classes that COCO calls otherwise; the other 14 have the same names in both.
VOC_AS_COCO = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


def common_classes(classes: Sequence[str], known: Sequence[str]) -> list[tuple[int, int]]:
    """(label in `classes`, label in `known`) of the classes that both have, by name, or by VOC's and COCO's names."""
    exact = {name: label for label, name in enumerate(known)}
    alike = {_coco(name): label for name, label in exact.items()}
    pairs = [(label, exact.get(name, alike.get(_coco(name)))) for label, name in enumerate(classes)]
    return [(label, other) for label, other in pairs if other is not None]


def _coco(name: str) -> str:
    return VOC_AS_COCO.get(name, name)


def carried(
    own: Tensor, other: Tensor, pairs: Sequence[tuple[int, int]], counts: tuple[int, int], layout: tuple[int, int]
) -> Tensor | None:
    """A class layer's tensor with the rows of the common classes, and of the background, taken from another one.

    Args:
        own, other: [P * (b + C) * n, ...], of `own` the rows of other classes are kept.
        pairs: (label in own, label in other).
        counts: C of own and of other.
        layout: (b, n) as Network.class_rows gives it.

    Returns:
        A new tensor shaped as `own`; None if the two do not belong together.
    """
    before, rows = layout
    if rows == 0 or own.dim() == 0:  # of all classes together
        return other.clone() if own.shape == other.shape else None
    lengths = [(before + count) * rows for count in counts]
    sizes = own.shape[0], other.shape[0]
    if any(size % length for size, length in zip(sizes, lengths, strict=True)):
        return None
    if sizes[0] // lengths[0] != sizes[1] // lengths[1] or own.shape[1:] != other.shape[1:]:
        return None
    result, source = (
        value.clone().reshape(-1, before + count, rows, *value.shape[1:])
        for value, count in zip((own, other), counts, strict=True)
    )
    result[:, :before] = source[:, :before]
    for label, theirs in pairs:
        result[:, before + label] = source[:, before + theirs]
    return result.reshape(own.shape)
