"""K-Hairstyle's polygons: every form they come in, and drawing them as masks.

Belongs here: `polygon1` (hair) and `polygon2` (blurred face). Does not belong here: the rest of the label.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import takewhile
from typing import Any, NamedTuple

import cv2
import numpy as np

MAX_POINTS = 50_000
MAX_RINGS = 500
"""A label with more is refused: comparing outlines takes time that grows with the square of either number."""
MIN_RETRACED = 0.95
"""A ring inside another, of at least this share of its area, is the same outline again and no hole."""
_LIMIT = 30_000.0
_SUBPIXEL_BITS = 3


class BadPolygon(ValueError):
    """The value is none of the known polygon forms; the message says what it is."""


class Polygon(NamedTuple):
    """A polygon as read.

    Attributes:
        rings: each (N, 2) float32 as x, y in pixels, N >= 3.
        short: how many rings of one or two points there were besides, which enclose nothing.
    """

    rings: list[np.ndarray]
    short: int = 0


def parse_polygon(value: object) -> Polygon:
    """Read a polygon in any known form.

    Forms: a list of rings of points, a flat list of points, either of them as a JSON string (also encoded twice),
    and "[]", "", "nan", "none", null or absent for "no polygon". A point is {"x": .., "y": ..} or [x, y].

    Raises:
        BadPolygon: anything else.
    """
    for _ in range(2):
        if not isinstance(value, str):
            break
        text = value.strip()
        if text.lower() in ("", "nan", "none", "null"):
            return Polygon([])
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadPolygon(f"not JSON: {text[:40]!r}") from error
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Polygon([])
    if not isinstance(value, list):
        raise BadPolygon(f"not a list but {type(value).__name__}")
    if _is_point(value):
        raise BadPolygon("a single point")
    rings = [value] if value and _is_point(value[0]) else value
    if not all(isinstance(ring, list) for ring in rings):
        raise BadPolygon("neither a list of points nor a list of rings")
    if len(rings) > MAX_RINGS:
        raise BadPolygon(f"more than {MAX_RINGS} rings")
    if sum(map(len, rings)) > MAX_POINTS:
        raise BadPolygon(f"more than {MAX_POINTS} points")
    return Polygon([_ring(ring) for ring in rings if len(ring) >= 3], sum(len(ring) in (1, 2) for ring in rings))


def _ring(points: list[Any]) -> np.ndarray:
    """(N, 2) float32. Points as the release has them, two finite numbers each, are read at once."""
    try:
        flat = [value for point in points for value in (point["x"], point["y"])]
        if set(map(type, flat)) <= {int, float}:
            ring = np.array(flat, np.float64).reshape(-1, 2)
            if np.isfinite(ring).all():
                return ring.astype(np.float32)
    except (KeyError, TypeError, IndexError, OverflowError):
        pass
    return np.array([_point(point) for point in points], np.float32)


def _is_point(value: Any) -> bool:
    if isinstance(value, dict):
        return "x" in value and "y" in value
    return isinstance(value, list) and len(value) == 2 and not any(isinstance(part, list | dict) for part in value)


def _point(value: Any) -> tuple[float, float]:
    if not _is_point(value):
        raise BadPolygon(f"not a point: {str(value)[:40]!r}")
    pair = (value["x"], value["y"]) if isinstance(value, dict) else value
    try:
        x, y = float(pair[0]), float(pair[1])
    except (TypeError, ValueError, OverflowError) as error:
        raise BadPolygon(f"not a point: {str(value)[:40]!r}") from error
    if not (math.isfinite(x) and math.isfinite(y)):
        raise BadPolygon("a coordinate is not finite")
    return x, y


def polygon_scale(label_size: tuple[int | None, int | None], width: int, height: int) -> tuple[float, float]:
    """Photo pixels per label pixel in x and y.

    1 where the label gives no size, or gives the photo's own size turned by 90 degrees: coordinates refer to the
    stored file, without EXIF rotation. Where it gives one side only, that side's ratio counts for both.
    """
    label_width, label_height = (side or None for side in label_size)
    if label_width in (None, height) and label_height in (None, width):
        return 1.0, 1.0
    ratios = width / label_width if label_width else None, height / label_height if label_height else None
    x, y = ratios[0] or ratios[1], ratios[1] or ratios[0]
    return x or 1.0, y or 1.0


def draw_polygon(
    rings: list[np.ndarray], width: int, height: int, scale: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """Draw rings as a mask.

    Rings are united; a ring that lies wholly inside what the larger ones cover is a hole. A ring that retraces another
    counts once.

    Returns:
        (height, width) bool.
    """
    mask = np.zeros((height, width), np.uint8)
    scaled = [np.clip(ring * np.array(scale, np.float32), -_LIMIT, _LIMIT) for ring in rings]
    for ring in _distinct(sorted(scaled, key=lambda ring: -cv2.contourArea(ring))):
        _draw_ring(mask, ring)
    return mask.view(bool)


def _draw_ring(mask: np.ndarray, ring: np.ndarray) -> None:
    """Draw one ring where it lies: as a hole if `mask`, (H, W) uint8 of 0 and 1, is set all over it."""
    start = np.clip(np.floor(ring.min(axis=0)) - 1, 0, None).astype(np.int32)
    end = np.clip(np.ceil(ring.max(axis=0)) + 2, 0, None).astype(np.int32)
    under = mask[start[1] : end[1], start[0] : end[0]]
    if under.size == 0:
        return
    part = np.zeros((under.shape[0], under.shape[1] + 1), np.uint8)  # OpenCV fills the last column for what lies beyond
    points = np.round(ring * (1 << _SUBPIXEL_BITS)).astype(np.int32) - (start << _SUBPIXEL_BITS)
    cv2.fillPoly(part, [points], 1, shift=_SUBPIXEL_BITS)
    filled = part[:, :-1] > 0
    under[filled] = not under[filled].all()


class _Outline(NamedTuple):
    """A ring with what tells two of them apart quickly: its area, and its box as x1, y1, x2, y2."""

    ring: np.ndarray
    area: float
    box: tuple[float, float, float, float]


def _distinct(rings: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Rings, the largest first, without those that fill (nearly) all of an earlier one and lie inside it."""
    kept: list[_Outline] = []
    for ring in rings:
        box = (*ring.min(axis=0).tolist(), *ring.max(axis=0).tolist())
        outline = _Outline(ring, cv2.contourArea(ring), box)
        least = outline.area / MIN_RETRACED
        near = takewhile(lambda other: other.area <= least, reversed(kept))  # noqa: B023 (used up here)
        if not any(_lies_in(outline, other) for other in near):
            kept.append(outline)
            yield ring


def _lies_in(outline: _Outline, other: _Outline) -> bool:
    """Is no point of a ring further than a pixel outside another?"""
    (x1, y1, x2, y2), (low_x, low_y, high_x, high_y) = outline.box, other.box
    if x1 < low_x - 1 or y1 < low_y - 1 or x2 > high_x + 1 or y2 > high_y + 1:
        return False
    return all(cv2.pointPolygonTest(other.ring, (float(x), float(y)), True) >= -1 for x, y in outline.ring)
