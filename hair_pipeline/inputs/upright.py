"""People's own photos, as every viewer shows them: turned by their EXIF orientation, with their colour profile.

Belongs here: reading such a photo, what was made for it by a program that ignores EXIF, and writing a picture back.
Does not belong here: K-Hairstyle's photos, whose labels refer to the stored pixels (`reader`).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from hair_pipeline.files import UnreadableImage, decode_image, encode_image
from hair_pipeline.inputs.jpeg import lost_data, small_gray
from hair_pipeline.inputs.reader import open_regular
from hair_pipeline.inputs.training_face import BadFace, Face, SheetMasks, choose_face, read_sheet
from hair_pipeline.profile import InputsConfig

_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""EXIF orientation -> how stored pixels are turned upright."""
ON_ITS_SIDE = (5, 6, 7, 8)
"""Orientations that exchange width and height."""
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class UprightPhoto:
    """A photo as viewers show it.

    Attributes:
        image: uint8 RGB (H, W, 3), upright.
        orientation: EXIF's, 1 to 8, that it was stored with.
        icc_profile: the colour profile of its values; None where sRGB is meant.
    """

    image: np.ndarray
    orientation: int = 1
    icc_profile: bytes | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright."""
        return self.image.shape[1], self.image.shape[0]

    @property
    def on_its_side(self) -> bool:
        """Does the size of what was made for this photo tell whether it was made for the stored pixels?"""
        return self.orientation in ON_ITS_SIDE and self.size[0] != self.size[1]

    def upright(self, made: np.ndarray) -> np.ndarray:
        """A mask or picture (H, W, ...) made for this photo, turned if its size is that of the stored pixels alone.

        Of square photos, and of those stored upside down or mirrored, it is taken for upright, as is any other size.
        """
        return turned(made, self.orientation) if self.on_its_side and made.shape[:2] == self.size else made


def turned(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels (H, W, ...) turned upright by their EXIF orientation."""
    turn = _TURNS.get(orientation)
    return stored if turn is None else np.ascontiguousarray(turn(stored))


def read_upright(path: Path) -> UprightPhoto:
    """Read a photo as viewers show it.

    Raises:
        UnreadableImage: as `files.read_image`.
    """
    try:
        with open_regular(str(path)) as file:
            return decode_upright(file.read())
    except OSError as error:
        raise UnreadableImage(f"cannot be read ({error.strerror})") from error


def decode_upright(data: bytes) -> UprightPhoto:
    """Decode a photo, its size checked before, and turn it upright.

    Raises:
        UnreadableImage: as `files.decode_image`, or a JPEG of which data are gone (`jpeg.lost_data`).
    """
    stored = decode_image(data)
    _require_whole(data)
    with Image.open(io.BytesIO(data)) as header:
        profile = header.info.get("icc_profile")
        try:
            orientation = header.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # Pillow raises many types on damaged tags; viewers show such a photo as it is stored
            orientation = 1
    orientation = orientation if orientation in _TURNS else 1
    is_rgb = isinstance(profile, bytes) and profile[16:20] == b"RGB "  # gray and CMYK were converted on decoding
    return UprightPhoto(turned(stored, orientation), orientation, profile if is_rgb else None)


def _require_whole(data: bytes) -> None:
    if not data.startswith(b"\xff\xd8"):
        return
    try:
        with Image.open(io.BytesIO(data)) as image:
            lost = lost_data(data, small_gray(image))
    except Exception as error:  # Pillow raises many types on damaged data
        raise UnreadableImage(f"cannot be decoded ({type(error).__name__})") from error
    if lost:
        raise UnreadableImage(f"truncated JPEG: {lost}")


def encode_picture(image: np.ndarray, suffix: str, icc_profile: bytes | None) -> bytes:
    """Encode a picture (H, W, 3) uint8 RGB with its colour profile and no orientation tag.

    Args:
        suffix: ".png" keeps every pixel; ".jpg" or ".jpeg".
    """
    if icc_profile is None:
        return encode_image(image, suffix, _JPEG_QUALITY)
    buffer = io.BytesIO()
    options = {"compress_level": 1} if suffix == ".png" else {"quality": _JPEG_QUALITY}
    Image.fromarray(image).save(buffer, "PNG" if suffix == ".png" else "JPEG", icc_profile=icc_profile, **options)
    return buffer.getvalue()


def read_face(photo: UprightPhoto, root: Path, paths: list[str], config: InputsConfig) -> tuple[Face, SheetMasks]:
    """The photo's face and its masks, upright, whether training_face saw it upright or as it is stored.

    Which of the two is told by the sheet's size; see `UprightPhoto.upright`.

    Args:
        root, paths: as in `choose_face`.

    Raises:
        BadFace: as `choose_face` and `read_sheet`.
    """
    width, height = photo.size
    try:
        return _read_face(root, paths, width, height, config)
    except BadFace as problem:
        if not photo.on_its_side:
            raise
        try:
            face, masks = _read_face(root, paths, height, width, config)
        except BadFace:
            raise problem from None
    upright = SheetMasks(photo.upright(masks.hair), photo.upright(masks.face))
    return replace(face, box=_turned_box(face.box, width, height, photo.orientation)), upright


def _read_face(root: Path, paths: list[str], width: int, height: int, config: InputsConfig) -> tuple[Face, SheetMasks]:
    face = choose_face(root, paths, width, height, config)
    return face, read_sheet(root, face, width, height)


def _turned_box(
    box: tuple[float, float, float, float], width: int, height: int, orientation: int
) -> tuple[float, float, float, float]:
    """A box in the stored pixels of a photo on its side -> in the upright photo of width x height."""
    left, top, right, bottom = box[1], box[0], box[3], box[2]
    if orientation in (6, 7):
        left, right = width - right, width - left
    if orientation in (7, 8):
        top, bottom = height - bottom, height - top
    return left, top, right, bottom
