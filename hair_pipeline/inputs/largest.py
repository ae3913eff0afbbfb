"""The largest photo there is of a catalog row: from the raw or hq set where present, with its hair mask.

Belongs here: loading it at its own size, for texture patches. Does not belong here: choosing it (`examine`) and the
photo that everything else is made from (`samples`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from hair_pipeline.files import UnreadableImage, decode_image
from hair_pipeline.inputs.geometry import same_framing
from hair_pipeline.inputs.k_hairstyle import Rejected, check_image
from hair_pipeline.inputs.labels import BadLabel, Label, parse_outlines
from hair_pipeline.inputs.polygons import draw_polygon, polygon_scale
from hair_pipeline.inputs.reader import read_bytes, read_input
from hair_pipeline.inputs.samples import Photo, Roots, load_photo


@dataclass(frozen=True)
class LargestPhoto:
    """The largest photo of an image, H x W at its own size.

    Attributes:
        path: of the photo, relative to the K-Hairstyle root.
        image: (H, W, 3) uint8 RGB, EXIF rotation ignored.
        hair_mask: (H, W) bool: inside polygon1, and inside training_face's mask where it can be brought here.
        blurred: (H, W) bool, the region the release blurred.
        fault: why this is not the catalog's largest photo but the row's own; empty where it is.
    """

    path: str
    image: np.ndarray
    hair_mask: np.ndarray
    blurred: np.ndarray
    fault: str = ""

    def scale(self, size: int) -> float:
        """Pixels of this photo per pixel of the processed square of side `size`."""
        return max(self.image.shape[:2]) / size


def load_largest(row: Any, settings: Roots, photo: Photo | None = None) -> LargestPhoto:
    """Load the largest photo of a catalog row (of `itertuples()` or a Series).

    Reads `image_path`, `label_path`, `largest_path`, `largest_label_path`, `largest_width`, `largest_height` and the
    columns that `samples.load_photo` reads; `photo` is the row's own where it is loaded already. Where the row's own
    photo is the largest, this is that photo, and also where the larger one turns out to be damaged: the catalog looks
    at parts of it only.

    Raises:
        UnreadableImage: a file changed or vanished since the catalog was made; the message says which.
    """
    photo = photo or load_photo(row, settings)
    own = LargestPhoto(row.image_path, photo.image, photo.sure_hair, photo.blurred)
    if row.largest_path == row.image_path:
        return own
    data = read_input(settings.k_hairstyle_root, row.largest_path)
    try:
        check_image(data)
        image = decode_image(data)
    except (Rejected, UnreadableImage) as error:
        return replace(own, fault=f"{row.largest_path}: {error}")
    height, width = image.shape[:2]
    if (width, height) != (row.largest_width, row.largest_height):
        said = f"{int(row.largest_width)}x{int(row.largest_height)}"
        raise UnreadableImage(f"{row.largest_path} is {width}x{height}, the catalog says {said}")
    label = None
    if row.largest_label_path != row.label_path:
        label = _own_label(row.largest_label_path, settings)
    hair, blurred = largest_masks(photo, label, width, height)
    return LargestPhoto(row.largest_path, image, hair, blurred)


def largest_masks(photo: Photo, label: Label | None, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Hair and blurred-face masks for a width x height photo.

    Args:
        photo: the row's own photo with its masks.
        label: the larger photo's own label; None where it has none, then both photos have the same framing.

    Returns:
        hair, blurred: (height, width) bool. With the same framing the enlarged masks of `photo` restrict hair
        (both must say hair) and extend the blurred region (either says blurred).
    """
    if label is None:
        return _enlarged(photo.sure_hair, width, height), _enlarged(photo.blurred, width, height)
    scale = polygon_scale((label.width, label.height), width, height)
    hair, blurred = draw_polygon(label.hair, width, height, scale), draw_polygon(label.blurred, width, height, scale)
    own_height, own_width = photo.image.shape[:2]
    if same_framing(own_width, own_height, width, height):
        hair &= _enlarged(photo.hair_mask, width, height)
        blurred |= _enlarged(photo.blurred, width, height)
    return hair, blurred


def _own_label(path: str, settings: Roots) -> Label:
    try:
        return parse_outlines(read_bytes(settings.k_hairstyle_root, path))
    except (OSError, BadLabel) as error:
        raise UnreadableImage(f"{path}: {error}") from error


def _enlarged(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    grown = cv2.resize(mask.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_LINEAR)
    return grown >= 128
