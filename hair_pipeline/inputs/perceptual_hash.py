"""The perceptual hash: 256 bits that stay nearly the same when a picture is resized, recompressed or brightened.

Belongs here: hashing and distances. Does not belong here: what near pictures mean for the split (`audit`).
"""

from __future__ import annotations

import cv2
import numpy as np

BITS = 256
_SIDE = 64
_LOW = 16


def perceptual_hash(gray: np.ndarray) -> str:
    """Hash a gray image (h, w) uint8 of any size (pHash: the signs of its lowest frequencies).

    After C. Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010: DCT of the image at
    64x64, the 16x16 lowest coefficients without the mean, each above or below their median.

    Returns:
        64 hex digits.
    """
    small = cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[: _LOW + 1, : _LOW + 1].ravel()[1 : BITS + 1]
    middle = np.partition(low, (BITS // 2 - 1, BITS // 2))[BITS // 2 - 1 : BITS // 2 + 1].mean()
    return np.packbits(low > middle).tobytes().hex()


def as_words(hashes: list[str]) -> np.ndarray:
    """Hex hashes -> (N, 4) uint64."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), np.uint64).reshape(-1, BITS // 64)


def near_pairs(first: np.ndarray, second: np.ndarray, distance: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of hashes at most `distance` bits apart, by comparing each with each in blocks.

    The first word's distance settles almost every pair: at 20,000 x 430,000 hashes about 15 s on one core.

    Args:
        first, second: (N, 4) and (M, 4) uint64.

    Returns:
        Indices into `first`, indices into `second`, and distances, each (P,).
    """
    rows: list[np.ndarray] = [np.empty(0, np.int64)]
    columns: list[np.ndarray] = [np.empty(0, np.int64)]
    second_words = np.ascontiguousarray(second[:, 0])
    for start in range(0, len(first), 256):
        block = np.ascontiguousarray(first[start : start + 256, 0])[:, None]
        for other in range(0, len(second), 16_384):
            near = np.bitwise_count(block ^ second_words[None, other : other + 16_384]) <= distance
            if near.any():
                row, column = np.nonzero(near)
                exact = np.bitwise_count(first[row + start] ^ second[column + other]).sum(1) <= distance
                rows.append(row[exact] + start)
                columns.append(column[exact] + other)
    row, column = np.concatenate(rows), np.concatenate(columns)
    return row, column, np.bitwise_count(first[row] ^ second[column]).sum(1)
