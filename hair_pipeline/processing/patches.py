"""Texture patches: square windows wholly inside the hair, spread over it, cut from the photo at its own resolution.

Belongs here: choosing and cutting windows. Does not belong here: the table they are written to (`shards`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np

from hair_pipeline.profile import PatchConfig

MIN_CONTRAST = 1.0
"""Standard deviation of the gray values below which a patch shows nothing."""
MAX_CLIPPED = 0.5
"""Share of pixels at 0 or 255 above which a patch shows nothing."""
RIM = 0.008
"""Distance kept from the mask's border where that leaves windows, as a share of the photo's shorter side."""


@dataclass(frozen=True)
class Patch:
    """One patch: (size, size, 3) uint8 RGB, with its top-left corner x, y in the photo."""

    size: int
    x: int
    y: int
    image: np.ndarray


def windows_inside(mask: np.ndarray, size: int) -> np.ndarray:
    """Top-left corners of all size x size windows wholly inside a mask, by integral image.

    Returns:
        (H - size + 1, W - size + 1) bool; empty when the image is smaller than the window.
    """
    height, width = mask.shape
    if height < size or width < size:
        return np.zeros((max(0, height - size + 1), max(0, width - size + 1)), bool)
    sums = cv2.integral(mask.astype(np.uint8))
    covered = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    return covered == size * size


def cut_patches(image: np.ndarray, hair_mask: np.ndarray, image_id: str, config: PatchConfig) -> list[Patch]:
    """Cut up to `config.per_image` patches of every size.

    Args:
        image: (H, W, 3) uint8, the photo. hair_mask: (H, W) bool.
        image_id: with `config.seed` and the size it decides the random choice.

    Returns:
        Patches wholly inside the mask; at first none overlaps another by more than half its side, then, if too few
        are found, by more than three quarters. Flat and clipped ones are left out.
    """
    inner = _erode(hair_mask, round(RIM * min(hair_mask.shape)))
    patches: list[Patch] = []
    for size in config.sizes:
        random = _random(image_id, size, config.seed)
        valid = windows_inside(inner, size)
        if not valid.any():
            valid = windows_inside(hair_mask, size)
        corners: list[tuple[int, int]] = []
        for distance in (size // 2, size // 4):
            free = valid.copy()
            for x, y in corners:
                _block(free, x, y, distance)
            while len(corners) < config.per_image:
                places = np.flatnonzero(free)
                if not places.size:
                    break
                y, x = divmod(int(places[random.integers(places.size)]), free.shape[1])
                _block(free, x, y, distance)
                window = image[y : y + size, x : x + size]
                if shows_texture(window):
                    corners.append((x, y))
                    patches.append(Patch(size, x, y, window.copy()))
                else:
                    _block(valid, x, y, distance)
    return patches


def shows_texture(patch: np.ndarray) -> bool:
    """Is there anything to learn from: not flat, and not mostly clipped to black or white?"""
    gray = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY)
    clipped = np.count_nonzero((gray == 0) | (gray == 255)) / gray.size
    return bool(gray.std() >= MIN_CONTRAST and clipped <= MAX_CLIPPED)


def _block(free: np.ndarray, x: int, y: int, distance: int) -> None:
    free[max(0, y - distance + 1) : y + distance, max(0, x - distance + 1) : x + distance] = False


def _random(image_id: str, size: int, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}:{size}:{image_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _erode(mask: np.ndarray, radius: int) -> np.ndarray:
    if radius < 1:
        return mask
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.erode(mask.astype(np.uint8), kernel, borderValue=1) > 0
