"""Which classes the images show, and LVIS's repeat factors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from directdet.data.records import Record, Records


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
    if isinstance(records, Records):
        labels, learnt, counts = records.classes_of_objects()
    else:
        counts = np.array([len(record.labels) for record in records], np.int64)
        labels = np.concatenate([np.zeros(0, np.int64), *(record.labels for record in records)])
        learnt = np.concatenate([np.zeros(0, bool), *(record.learnt for record in records)])
    images = np.repeat(np.arange(len(counts)), counts)[learnt]
    pairs = np.unique(np.stack([images, labels[learnt].astype(np.int64)]), axis=1)
    return pairs[0], pairs[1]
