"""Which classes the images show, and LVIS's repeat factors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from directdet.data.flat.arrays import all_objects
from directdet.data.records import Record


def repeat_factors(images: np.ndarray, labels: np.ndarray, count: int, threshold: float) -> np.ndarray:
    """LVIS's repeat factors (arXiv 1908.03195, appendix): r(i) = max over its classes c of max(1, sqrt(t / f(c))).

    Args:
        images, labels: pairs, each once: image ``images[p]`` of ``count`` shows class ``labels[p]``.
        threshold: t: classes that a smaller share f(c) of the images shows are drawn more often.

    Returns:
        float64 [count]; 1 for an image without objects.
    """
    factors = np.ones(count)
    if len(labels):
        shares = np.bincount(labels) / count
        of_class = np.sqrt(threshold / np.maximum(shares, 1 / count))  # classes that no image shows are not asked for
        np.maximum.at(factors, images, of_class[labels])
    return factors


def shown_classes(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (image, class), each once, of the classes that an image shows: int64 [P] each.

    Crowds and objects of weight 0, such as what an edge leaves of one, do not count: nothing is learnt of them.
    """
    objects = all_objects(records)
    learnt = objects.learnt
    images = np.repeat(np.arange(len(records)), objects.counts)[learnt]
    pairs = np.unique(np.stack([images, objects.labels[learnt].astype(np.int64)]), axis=1)
    return pairs[0], pairs[1]
