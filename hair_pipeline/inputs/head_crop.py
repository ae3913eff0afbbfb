"""The square around a head in which the hair of a photo of any framing is drawn: for serving and for the A/B test.

Belongs here: where it lies, and cutting it out. Does not belong here: the processed square, which a part that is not
square is letterboxed into like a whole photo (`geometry`), and pasting back (`release.serving`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from hair_pipeline.errors import PipelineError
from hair_pipeline.inputs.geometry import letterbox, same_framing
from hair_pipeline.inputs.samples import Photo
from hair_pipeline.inputs.upright import ON_ITS_SIDE, UprightPhoto, turned

MARGIN = 0.25
"""Context kept around hair and face, as a share of their extent."""
WHOLE = 0.8
"""A head whose square would take this share of the photo's longer side is framed as in the training photos (all of the
sample's are): the photo stays whole."""


@dataclass(frozen=True)
class Crop:
    """The part of a photo that a square around the head shows; where the square is wider or higher than the photo, the
    part is not square. In photo pixels, all of them inside.
    """

    x: int
    y: int
    width: int
    height: int

    @property
    def side(self) -> int:
        """Of the square."""
        return max(self.width, self.height)

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the photo."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)


def head_crop(hair_mask: np.ndarray, face_mask: np.ndarray) -> Crop:
    """The smallest square that holds hair and face with `MARGIN` around; the whole photo where that is hardly larger.

    Raises:
        PipelineError: the hair mask is empty.
    """
    if not hair_mask.any():
        raise PipelineError("the hair mask is empty", remedy="give a mask that is white where the hair is")
    both = hair_mask | face_mask
    x, y, width, height = cv2.boundingRect(both.astype(np.uint8))
    side, (photo_height, photo_width) = round(max(width, height) * (1 + 2 * MARGIN)), hair_mask.shape
    if side >= WHOLE * max(photo_width, photo_height):
        return Crop(0, 0, photo_width, photo_height)
    left, width = _placed(x + width / 2 - side / 2, side, photo_width)
    top, height = _placed(y + height / 2 - side / 2, side, photo_height)
    return Crop(left, top, width, height)


def _placed(start: float, side: int, limit: int) -> tuple[int, int]:
    """Where the square starts and how far it goes: moved inside the photo, and no further than the photo."""
    extent = min(side, limit)
    return int(np.clip(round(start), 0, limit - extent)), extent


def cut(array: np.ndarray, crop: Crop) -> np.ndarray:
    """The crop's pixels of a picture or a mask of the photo's size."""
    return np.ascontiguousarray(array[crop.window])


def cut_photo(photo: Photo, crop: Crop) -> Photo:
    """The crop of a photo with its masks and its box; `to_sample` makes a square of it, as of a photo."""
    hair, face, blurred = (cut(mask, crop) for mask in (photo.hair_mask, photo.face_mask, photo.blurred))
    outline = None if photo.outline is None else cut(photo.outline, crop)
    box = None if photo.box is None else (photo.box - [crop.x, crop.y, crop.x, crop.y]).astype(np.float32)
    return replace(
        photo, image=cut(photo.image, crop), hair_mask=hair, face_mask=face, blurred=blurred, box=box, outline=outline
    )


@dataclass(frozen=True)
class Framing:
    """How a part was cut from a photo, for pictures that others made of the whole of it.

    Attributes:
        width, height: of the upright photo. orientation: EXIF's, that it was stored with. crop: the part.
    """

    width: int
    height: int
    orientation: int
    crop: Crop

    @classmethod
    def of(cls, photo: UprightPhoto, crop: Crop) -> Framing:
        return cls(*photo.size, photo.orientation, crop)

    def cut(self, picture: np.ndarray) -> np.ndarray | None:
        """The same part of a picture of the whole photo.

        Args:
            picture: uint8 RGB, of the photo's size or another one of its framing (also as stored), or its letterbox
                into a square.

        Returns:
            (crop.height, crop.width, 3) uint8; None where the picture shows another framing.
        """
        height, width = picture.shape[:2]
        if same_framing(width, height, self.width, self.height):
            whole = picture
        elif same_framing(height, width, self.width, self.height) and self.orientation in ON_ITS_SIDE:
            whole = turned(picture, self.orientation)
        elif width == height:
            return cut(letterbox(self.width, self.height, width).image_back(picture), self.crop)
        else:
            return None
        return cut(_resized(whole, self.width, self.height), self.crop)


def _resized(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    if picture.shape[:2] == (height, width):
        return picture
    interpolation = cv2.INTER_AREA if picture.shape[1] > width else cv2.INTER_CUBIC
    return cv2.resize(picture, (width, height), interpolation=interpolation)
