"""Small JPEGs that show what was learnt.

Belongs here: grids and the size limit. Does not belong here: what is shown.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from hair_pipeline.files import encode_image, write_bytes

MAX_PICTURE_BYTES = 20_000


def write_picture(path: Path, image: np.ndarray) -> Path:
    """Write an RGB image as a JPEG of at most `MAX_PICTURE_BYTES`: lower quality first, then smaller."""
    while True:
        for quality in (85, 70, 50):
            data = encode_image(image, ".jpg", quality)
            if len(data) <= MAX_PICTURE_BYTES:
                write_bytes(path, data)
                return path
        image = cv2.resize(image, (image.shape[1] * 3 // 4, image.shape[0] * 3 // 4), interpolation=cv2.INTER_AREA)


def picture_grid(rows: list[list[np.ndarray]], side: int = 96) -> np.ndarray:
    """Rows of RGB images (missing places black) as one picture of `side`-pixel cells."""
    width = max(len(row) for row in rows)
    canvas = np.zeros((len(rows) * side, width * side, 3), np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            cell = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
            canvas[y * side : (y + 1) * side, x * side : (x + 1) * side] = cell
    return canvas
