"""Texture patches: square windows wholly inside the hair, spread over it, cut from the photo at its own resolution.

Belongs here: choosing and cutting windows. Does not belong here: the table they are written to (`patch_rows`).
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np

from hair_pipeline.profile import PatchConfig

Zone = Literal["roots", "lengths", "ends"]
Flaw = Literal["flat", "clipped", "blurred"]
ZONES: tuple[Zone, ...] = ("roots", "lengths", "ends")
MIN_CONTRAST = 1.0
"""Standard deviation of the gray values below which a patch is flat."""
MAX_CLIPPED = 0.4
"""Share of pixels at 0 or 255 above which a patch is clipped."""
MIN_SHARPNESS = 0.25
"""Detail finer than 3 pixels over detail of 3-9 pixels, below which a patch is blurred.

Rendered hair has at least 1.0; blurred by a Gaussian of 1 pixel 0.36, of 2 pixels 0.21, of 3 pixels 0.18.
"""
ROUNDING = 0.3
"""Standard deviation that rounding to whole gray values alone brings into the finest detail."""
RIM = 0.008
"""Distance kept from the mask's border where that leaves windows, as a share of the photo's shorter side."""
GRID = 4
"""Windows are looked for at every fourth pixel, from a random start; at every pixel where that finds none."""


@dataclass(frozen=True)
class Patch:
    """One patch: (size, size, 3) uint8 RGB, its top-left corner x, y in the photo, and where on the hair it lies."""

    size: int
    x: int
    y: int
    zone: Zone
    image: np.ndarray


@dataclass
class Cut:
    """The patches of one photo, and for each size without any: why (no window inside the hair, or only flawed ones)."""

    patches: list[Patch] = field(default_factory=list)
    without: dict[int, Literal["no_window", "only_flawed"]] = field(default_factory=dict)
    flawed: int = 0


def windows_inside(mask: np.ndarray, size: int, step: int = 1, start: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Top-left corners x, y of size x size windows wholly inside a mask, by integral image.

    Args:
        mask: (H, W) bool. size: side of the windows.
        step: distance between the corners looked at. start: x, y of the first of them.

    Returns:
        (N, 2) int64, row by row.
    """
    return _corners(cv2.integral(mask.view(np.uint8)), size, step, start)


def _corners(sums: np.ndarray, size: int, step: int, start: tuple[int, int]) -> np.ndarray:
    x, y = start
    if min(sums.shape) <= size:
        return np.zeros((0, 2), np.int64)
    low_y, high_y = slice(y, sums.shape[0] - size, step), slice(y + size, None, step)
    low_x, high_x = slice(x, sums.shape[1] - size, step), slice(x + size, None, step)
    covered = sums[high_y, high_x] - sums[low_y, high_x] - sums[high_y, low_x] + sums[low_y, low_x]
    rows, columns = np.divmod(np.flatnonzero(covered == size * size), covered.shape[1])
    return np.stack([columns * step + x, rows * step + y], axis=1)


def largest_window(mask: np.ndarray, smallest: int) -> tuple[int, int, int] | None:
    """The largest square wholly inside a mask: x, y of its top-left corner and its side; of equal ones a middle one.

    Args:
        mask: (H, W) bool. smallest: side below which there is none.
    """
    found = None
    low, high = smallest, min(mask.shape)
    while low <= high:
        side = (low + high) // 2
        corners = windows_inside(mask, side)
        if len(corners):
            x, y = corners[len(corners) // 2].tolist()
            found = x, y, side
            low = side + 1
        else:
            high = side - 1
    return found


def cut_patches(image: np.ndarray, hair_mask: np.ndarray, image_id: str, config: PatchConfig) -> list[Patch]:
    """The patches of `cut`."""
    return cut(image, hair_mask, image_id, config).patches


def cut(image: np.ndarray, hair_mask: np.ndarray, image_id: str, config: PatchConfig) -> Cut:
    """Cut up to `config.per_image` patches of every size.

    Args:
        image: (H, W, 3) uint8, the photo. hair_mask: (H, W) bool.
        image_id: with `config.seed` and the size it decides the random choice.

    Returns:
        Patches wholly inside the mask, taken from roots, lengths and ends (the upper, middle and lower third of the
        hair's pixels) by turns; at first none overlaps another by more than half its side, then, if too few are
        found, by more than three quarters. Flat, clipped and blurred ones are left out.
    """
    result = Cut()
    left, top, width, height = cv2.boundingRect(hair_mask.view(np.uint8))
    width, left = width + left % GRID, left - left % GRID
    height, top = height + top % GRID, top - top % GRID
    sums = cv2.integral(hair_mask[top : top + height, left : left + width].view(np.uint8)) if width else _NOTHING
    borders = tuple(top + border for border in _zone_borders(sums))
    rim = round(RIM * min(hair_mask.shape))
    for size in config.sizes:
        random = _random(image_id, size, config.seed)
        corners = _candidates(sums, size, rim, random) + np.array([left, top])
        patches, flawed = _choose(image, corners, size, borders, config.per_image, random)
        result.patches += patches
        result.flawed += flawed
        if not patches:
            result.without[size] = "only_flawed" if flawed else "no_window"
    return result


_NOTHING = np.zeros((1, 1), np.int32)
"""The integral image of an empty mask."""


def _candidates(sums: np.ndarray, size: int, rim: int, random: np.random.Generator) -> np.ndarray:
    """Corners of windows inside the mask in random order: away from its border, else up to it, else at any pixel."""
    start = int(random.integers(GRID)), int(random.integers(GRID))
    corners = _corners(sums, size + 2 * rim, GRID, start) + rim
    if not len(corners):
        corners = _corners(sums, size, GRID, start)
    if not len(corners):
        corners = _corners(sums, size, 1, (0, 0))
    return corners[random.permutation(len(corners))]


def _choose(
    image: np.ndarray,
    corners: np.ndarray,
    size: int,
    borders: tuple[int, ...],
    wanted: int,
    random: np.random.Generator,
) -> tuple[list[Patch], int]:
    """Take windows from the zones by turns; returns them and how many were left out for a flaw."""
    patches: list[Patch] = []
    x, y = (np.ascontiguousarray(column, np.int32) for column in corners.T)
    zones = np.searchsorted(borders, y + size // 2, side="right")
    tried: list[int] = []
    flawed = 0
    for distance in (size // 2, size // 4):
        if len(patches) == wanted or not len(corners):
            break
        free = np.ones(len(corners), bool)
        for place in tried:
            free &= _away(x, y, place, distance)
        turns = deque(random.permutation(len(ZONES)).tolist())
        while turns and len(patches) < wanted:
            number = turns.popleft()
            choice = free & (zones == number)
            place = int(choice.argmax())
            if not choice[place]:
                continue
            left, top = int(x[place]), int(y[place])
            window = image[top : top + size, left : left + size]
            if flaw_of(window) is None:
                patches.append(Patch(size, left, top, ZONES[number], window.copy()))
                turns.append(number)
            else:
                flawed += 1
                turns.appendleft(number)
            tried.append(place)
            free &= _away(x, y, place, distance)
    return patches, flawed


def _away(x: np.ndarray, y: np.ndarray, place: int, distance: int) -> np.ndarray:
    """Which corners are at least `distance` away from that at `place`, in x or in y."""
    distance = max(1, distance)
    return (np.abs(x - x[place]) >= distance) | (np.abs(y - y[place]) >= distance)


def _zone_borders(sums: np.ndarray) -> tuple[int, int]:
    """Rows that part the hair's pixels into three equal shares, from an integral image."""
    above = sums[:, -1]
    first, second = np.searchsorted(above, [above[-1] / 3, above[-1] * 2 / 3])
    return int(first), int(second)


def flaw_of(patch: np.ndarray) -> Flaw | None:
    """What is wrong with a patch (S, S, 3) uint8 as a sample of texture; None when nothing is."""
    gray = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY)
    if _deviation(gray) < MIN_CONTRAST:
        return "flat"
    if np.count_nonzero((gray == 0) | (gray == 255)) > MAX_CLIPPED * gray.size:
        return "clipped"
    exact = gray.astype(np.float32)
    smooth = cv2.blur(exact, (3, 3))
    fine, coarse = _deviation(exact - smooth), _deviation(smooth - cv2.blur(smooth, (9, 9)))
    return "blurred" if fine**2 - ROUNDING**2 < (MIN_SHARPNESS * coarse) ** 2 else None


def _deviation(values: np.ndarray) -> float:
    return float(cv2.meanStdDev(values)[1][0, 0])


def _random(image_id: str, size: int, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}:{size}:{image_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
