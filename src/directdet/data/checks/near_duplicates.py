"""Pictures of two splits that look the same: resized, saved again, a little brighter.

A picture is reduced to 18 x 16 levels of grey. Candidates are found by a difference hash of 64 bits (whether each of
8 x 8 cells is brighter than the one on its left; N. Krawetz, "Kind of like that", 2013), and confirmed by these levels.
Pictures that were cut, mirrored or turned are not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

import cv2
import numpy as np

from directdet.data.pixels.format import PixelFormat, planewise

WIDTH, HEIGHT = 18, 16
# Of 560 photographs of four sets, at least 99 % are found again when they are halved, a third as large, stretched to a
# square, grey, blurred, or saved at JPEG quality 30. No two of them are taken for each other (156,520 pairs), nor any
# of VOC 2007's train and val (6.2 million).
MOST_BITS = 6
MOST_RMS = 0.15  # of the levels of grey, in their standard deviations
_BANDS = MOST_BITS + 1  # two hashes that differ in so few bits are equal in at least one band
_ONE = 32  # of a look's whole numbers are one standard deviation
_FLAT = 2.0  # standard deviation of 8-bit levels below which there is nothing to compare
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_PAIRS = 1 << 20  # compared at once
_MOST_PAIRS = 1 << 24  # of a band: more are only there where very many pictures look alike, as from a fixed camera
_CONFIRMED = 16  # candidates of a picture and piece, those whose hashes differ least
_BITS = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)


@dataclass(frozen=True)
class NearDuplicate:
    """A picture that looks like one of an earlier split; of several of these, the most similar one."""

    file: str
    split: str
    like: str
    like_split: str
    bits: int  # of 64, in which their hashes differ


def look_of(image: np.ndarray, pixels: PixelFormat) -> np.ndarray | None:
    """What is compared of a picture [H, W, C]: int8 [16, 18], its levels of grey in 32nds of their standard deviation.

    None for a picture that is the same all over.
    """
    if image.shape[2] in (1, 2):
        image = image[:, :, :1]
    if pixels.dtype != "uint8":  # a few levels of many would be lost by rounding
        image = image.astype(np.float32)
    small = planewise(image, lambda one: cv2.resize(one, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA))
    small = small.reshape(HEIGHT, WIDTH, -1).astype(np.float32)
    grey = small @ _LUMA if pixels.is_rgb else small.mean(axis=2)
    mean, deviation = float(grey.mean()), float(grey.std())
    if not deviation > (_FLAT if pixels.dtype == "uint8" else 1e-6 * abs(mean)):
        return None
    return np.clip(np.rint((grey - mean) * (_ONE / deviation)), -127, 127).astype(np.int8)


def difference_hashes(looks: np.ndarray) -> np.ndarray:
    """uint64 [N] of looks [N, 16, 18]."""
    cells = looks.reshape(-1, 8, 2, 9, 2).sum(axis=(2, 4), dtype=np.int32)
    brighter = (cells[:, :, 1:] > cells[:, :, :-1]).reshape(-1, 64)
    return np.packbits(brighter, axis=1).view(np.uint64).reshape(-1)


def near_duplicates(
    splits: Mapping[str, Mapping[str, np.ndarray]], known: Set[str] = frozenset()
) -> tuple[NearDuplicate, ...]:
    """Pictures that look like one of an earlier split, at most one line for each.

    Args:
        splits: split -> file -> its look.
        known: files to leave out, such as those that are known to be in several splits.
    """
    found: list[NearDuplicate] = []
    earlier: list[tuple[str, str, np.ndarray]] = []  # file, split, look
    for split, looks in splits.items():
        here = [(file, look) for file, look in looks.items() if file not in known]
        if earlier and here:
            others = np.stack([look for _, _, look in earlier])
            best, bits = nearest(others, np.stack([look for _, look in here]))
            for (file, _), place, differing in zip(here, best.tolist(), bits.tolist(), strict=True):
                if place >= 0:
                    like, like_split, _ = earlier[place]
                    found.append(NearDuplicate(file, split, like, like_split, differing))
        earlier += [(file, split, look) for file, look in looks.items()]
    return tuple(found)


def nearest(others: np.ndarray, looks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of ``looks`` [M, 16, 18] the most similar of ``others`` [N, 16, 18]: its index int64 [M], or -1 if none
    is a near-duplicate; and in how many bits their hashes differ, int64 [M]."""
    left, right = difference_hashes(others), difference_hashes(looks)
    flat_others, flat_looks = others.reshape(len(others), -1), looks.reshape(len(looks), -1)
    best, bits = np.full(len(looks), -1), np.full(len(looks), 64)
    smallest = np.full(len(looks), MOST_RMS * _ONE)
    for ours, theirs in _candidates(left, right):
        apart = flat_others[ours].astype(np.float32) - flat_looks[theirs]
        rms = np.sqrt(np.square(apart).mean(axis=1))
        # The closest of each picture, and of equals the first: the last that is written stays.
        order = np.lexsort((-ours, -rms))
        ours, theirs, rms = ours[order], theirs[order], rms[order]
        better = (rms < smallest[theirs]) | ((rms == smallest[theirs]) & (best[theirs] < 0))
        ours, theirs, rms = ours[better], theirs[better], rms[better]
        best[theirs], smallest[theirs] = ours, rms
        bits[theirs] = _differing(left[ours], right[theirs])
    return best, bits


def _candidates(left: np.ndarray, right: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (index of ``left``, index of ``right``) whose hashes differ in at most MOST_BITS, in pieces.

    Hashes are sorted by one band of their bits after the other, so only those that are equal there are compared. The
    bits of a band are spread over the picture: neighbours are rarely independent. A pair may be given more than once.
    Where a band has too many pairs, each hash is compared with those that follow and precede it in the order of all
    bits, and of very many candidates only the best are given: time grows with the number of pictures, not its square.
    """
    most = max(64, _MOST_PAIRS // len(right))
    places = np.arange(64, dtype=np.uint64)
    for band in range(_BANDS):
        mask = np.bitwise_or.reduce(np.uint64(1) << places[band::_BANDS])
        order = np.lexsort((left, left & mask))
        keys, wanted = (left & mask)[order], right & mask
        first, last = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
        crowded = np.flatnonzero(last - first > most)
        for place in crowded.tolist():
            here = first[place] + np.searchsorted(left[order[first[place] : last[place]]], right[place])
            first[place] = np.clip(here - most // 2, first[place], last[place] - most)
            last[place] = first[place] + most
        counts = last - first
        for start, end in _pieces(counts):
            part = counts[start:end]
            theirs = np.repeat(np.arange(start, end), part)
            offsets = np.arange(len(theirs)) - np.repeat(np.cumsum(part) - part, part)
            ours = order[np.repeat(first[start:end], part) + offsets]
            bits = _differing(left[ours], right[theirs])
            near = bits <= MOST_BITS
            yield _best(ours[near], theirs[near], bits[near])


def _best(ours: np.ndarray, theirs: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of pairs that are sorted by ``theirs``, for each of these the few whose hashes differ least."""
    if len(theirs) <= _CONFIRMED or (theirs[_CONFIRMED:] != theirs[:-_CONFIRMED]).all():
        return ours, theirs
    order = np.argsort(theirs * 64 + bits, kind="stable")
    ours, theirs = ours[order], theirs[order]
    rank = np.arange(len(theirs)) - np.searchsorted(theirs, theirs, "left")
    return ours[rank < _CONFIRMED], theirs[rank < _CONFIRMED]


def _pieces(counts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of ``counts`` that add up to no more than _PAIRS, or hold a single one."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + _PAIRS, "right")))
        yield start, end
        start = end


def _differing(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """In how many bits pairs of hashes differ."""
    return _BITS[(left ^ right).view(np.uint16).reshape(-1, 4)].sum(axis=1, dtype=np.int64)
