"""Thumbnails for reports: data URIs, and the small preview sheet the orchestrator shows.

Belongs here: shrinking and encoding for looking at. Does not belong here: pictures that are measured.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from hair_pipeline.evaluation.cases import Case
from hair_pipeline.evaluation.regions import seam_places
from hair_pipeline.files import encode_image, write_bytes

THUMBNAIL_SIDE = 224
SEAM_SIDE = 150
"""Side at which an enlarged place is shown, pixels."""
PREVIEW_BYTES = 20_000


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """The image with its longer side at most `side` pixels; uint8."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def data_uri(image: np.ndarray, side: int = THUMBNAIL_SIDE, quality: int = 84) -> str:
    """A JPEG thumbnail as a data URI, to stand in a page that loads nothing."""
    return "data:image/jpeg;base64," + base64.b64encode(encode_image(shrink(image, side), ".jpg", quality)).decode()


def hair_on_gray(case: Case) -> np.ndarray:
    """The reference's hair alone, (S, S, 3) uint8."""
    reference = case.reference
    return np.where(reference.hair_mask[..., None], reference.image, np.uint8(235))


def seam_strip(case: Case, *outputs: np.ndarray) -> np.ndarray | None:
    """Forehead, ears and hair roots enlarged, side by side: the photo's above, each output's below.

    Args:
        outputs: uint8 RGB (S, S, 3).

    Returns:
        uint8 (154 (1 + len(outputs)), 616, 3), white lines between the places; None where there is no face.
    """
    sample = case.sample
    places = seam_places(sample.hair_mask, sample.face_mask, sample.box)
    if not places:
        return None

    def enlarged(image: np.ndarray) -> np.ndarray:
        cuts = [image[y : y + side, x : x + side] for x, y, side in places]
        large = [cv2.resize(cut, (SEAM_SIDE, SEAM_SIDE), interpolation=cv2.INTER_CUBIC) for cut in cuts]
        return np.hstack([np.pad(cut, ((0, 4), (0, 4), (0, 0)), constant_values=255) for cut in large])

    return np.vstack([enlarged(image) for image in (sample.image, *outputs)])


def write_preview(rows: Sequence[Sequence[np.ndarray]], path: Path) -> Path:
    """Write a contact sheet of equally sized images as a JPEG of at most 20 KB.

    Args:
        rows: at least one row, all of the same length, of uint8 RGB images (S, S, 3).
    """
    for side, quality in ((128, 82), (112, 72), (96, 62), (80, 50), (64, 40), (48, 30)):
        cells = [[cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in row] for row in rows]
        data = encode_image(np.vstack([np.hstack(row) for row in cells]), ".jpg", quality)
        if len(data) <= PREVIEW_BYTES:
            break
    write_bytes(path, data)
    return path
