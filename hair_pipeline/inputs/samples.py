"""Loading one catalog row: the photo with its masks at its own size, or as a processed square.

Belongs here: what every asset reads per image. Does not belong here: changed images (`processing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hair_pipeline.files import UnreadableImage
from hair_pipeline.inputs.geometry import letterbox
from hair_pipeline.inputs.hair_rim import with_rim
from hair_pipeline.inputs.labels import BadLabel, parse_outlines
from hair_pipeline.inputs.polygons import draw_polygon, polygon_scale
from hair_pipeline.inputs.reader import read_bytes, read_photo
from hair_pipeline.inputs.training_face import MIN_HAIR_FRACTION, BadFace, SheetMasks, decode_sheet


class Roots(Protocol):
    """Where the inputs are; `Settings` is one."""

    @property
    def k_hairstyle_root(self) -> Path: ...

    @property
    def training_face_root(self) -> Path: ...


@dataclass(frozen=True)
class InputRoots:
    """Only the two input roots: light enough to hand to worker processes."""

    k_hairstyle_root: Path
    training_face_root: Path


@dataclass(frozen=True)
class Photo:
    """A photo at its own size.

    Attributes:
        image: (H, W, 3) uint8 RGB, EXIF rotation ignored.
        hair_mask, face_mask: (H, W) bool, disjoint; the face mask is all False without a usable face.
        blurred: (H, W) bool, the region the release blurred (polygon2); the face's box where that cannot be read.
        box: (4,) float32 x1, y1, x2, y2 in photo pixels; None without a face.
        outline: (H, W) bool, polygon1 where the hair mask is another one; None where there is no second opinion.
    """

    image_id: str
    person: str
    image: np.ndarray
    hair_mask: np.ndarray
    face_mask: np.ndarray
    blurred: np.ndarray
    box: np.ndarray | None
    outline: np.ndarray | None = None

    @property
    def sure_hair(self) -> np.ndarray:
        """(H, W) bool: hair by all that is known."""
        return self.hair_mask if self.outline is None else self.hair_mask & self.outline


@dataclass(frozen=True)
class Sample:
    """A processed square, S x S.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        hair_mask, face_mask: (S, S) bool; the face mask is all False without a usable face.
        box: (4,) float32 x1, y1, x2, y2 in the square's pixels; None without a face.
        window: rows and columns that the photo covers; None where it covers the whole square.
    """

    image_id: str
    person: str
    image: np.ndarray
    hair_mask: np.ndarray
    face_mask: np.ndarray
    box: np.ndarray | None
    window: tuple[slice, slice] | None = None


def load_photo(row: Any, settings: Roots) -> Photo:
    """Load a catalog row (of `itertuples()` or a Series) at the photo's own size.

    Raises:
        UnreadableImage: a file changed or vanished since the catalog was made; the message says which.
    """
    image = read_photo(settings.k_hairstyle_root, row.image_path)
    height, width = image.shape[:2]
    if (width, height) != (row.width, row.height):
        raise UnreadableImage(
            f"{row.image_path} is {width}x{height}, the catalog says {int(row.width)}x{int(row.height)}"
        )
    try:
        label = parse_outlines(read_bytes(settings.k_hairstyle_root, row.label_path))
    except (OSError, BadLabel) as error:
        raise UnreadableImage(f"{row.label_path}: {error}") from error
    scale = polygon_scale((label.width, label.height), width, height)
    masks = _sheet(row, settings, width, height) if row.stage2 or row.mask_origin == "training_face" else None
    face = masks.face if masks is not None and row.stage2 else np.zeros((height, width), bool)
    outline = draw_polygon(label.hair, width, height, scale)
    sheet = masks.hair if masks is not None and row.mask_origin == "training_face" else None
    hair = outline & ~face if sheet is None else sheet
    box = np.array([row.box_x1, row.box_y1, row.box_x2, row.box_y2], np.float32) if row.has_face else None
    blurred = draw_polygon(label.blurred, width, height, scale)
    if box is not None and not label.blur_is_outlined:
        corners = np.concatenate([np.floor(box[:2]), np.ceil(box[2:])])
        x1, y1, x2, y2 = np.clip(corners, 0, [width, height, width, height]).astype(int)
        blurred[y1:y2, x1:x2] = True
    hair, face = with_rim(image, hair, face, box)
    second = outline if sheet is not None and outline.mean() >= MIN_HAIR_FRACTION else None
    return Photo(row.image_id, row.source, image, hair, face, blurred, box, second)


def load_sample(row: Any, settings: Roots, size: int = 512) -> Sample:
    """Load a catalog row as a processed square.

    Raises:
        UnreadableImage: as `load_photo`.
    """
    return to_sample(load_photo(row, settings), size)


def to_sample(photo: Photo, size: int = 512) -> Sample:
    """Letterbox a photo, its masks and its box into a size x size square."""
    geometry = letterbox(photo.image.shape[1], photo.image.shape[0], size)
    return Sample(
        image_id=photo.image_id,
        person=photo.person,
        image=geometry.image(photo.image),
        hair_mask=geometry.mask(photo.hair_mask),
        face_mask=geometry.mask(photo.face_mask),
        box=None if photo.box is None else geometry.box(photo.box),
        window=None if geometry.inner == (size, size) else geometry.window,
    )


def _sheet(row: Any, settings: Roots, width: int, height: int) -> SheetMasks:
    try:
        return decode_sheet((settings.training_face_root / row.sheet_path).read_bytes(), width, height)
    except (OSError, BadFace) as error:
        raise UnreadableImage(f"{row.sheet_path}: {error}") from error
