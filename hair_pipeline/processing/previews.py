"""Small pictures for people: contact sheets of at most 20 KB.

Belongs here: laying thumbnails out and encoding them small. Does not belong here: what is shown in the UI.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from hair_pipeline.files import encode_image

MAX_BYTES = 20_000
TILE = 96
_BACKDROP = (235, 235, 240)


def thumbnail(image: np.ndarray, size: int | tuple[int, int] = TILE) -> np.ndarray:
    """Resize an RGB or RGBA uint8 image to (width, height), or a square; transparent parts show a light backdrop."""
    small = cv2.resize(image, size if isinstance(size, tuple) else (size, size), interpolation=cv2.INTER_AREA)
    if small.shape[2] == 3:
        return small
    alpha = small[..., 3:].astype(np.float32) / 255
    # RGB is 0 under alpha 0, so that a shrunk pixel is already multiplied by its alpha
    return np.clip(small[..., :3] + (1 - alpha) * np.array(_BACKDROP, np.float32), 0, 255).astype(np.uint8)


def contact_sheet(tiles: Sequence[np.ndarray], columns: int = 6) -> np.ndarray | None:
    """Lay (T, T, 3) uint8 tiles of one size out in rows, left to right; None without tiles."""
    if not tiles:
        return None
    columns = min(columns, len(tiles))
    blank = np.full_like(tiles[0], 255)
    padded = [*tiles, *[blank] * (-len(tiles) % columns)]
    return np.vstack([np.hstack(padded[start : start + columns]) for start in range(0, len(padded), columns)])


def encode_preview(image: np.ndarray, max_bytes: int = MAX_BYTES) -> bytes:
    """Encode an RGB image as a JPEG of at most `max_bytes`: first with less quality, then smaller."""
    while True:
        for quality in (85, 70, 55, 40, 25):
            data = encode_image(image, ".jpg", quality)
            if len(data) <= max_bytes:
                return data
        size = max(8, round(image.shape[1] * 0.75)), max(8, round(image.shape[0] * 0.75))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
