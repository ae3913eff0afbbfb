"""The one geometry between a photo and its processed square: scaled to fit and centred (letterbox), never cropped.

Belongs here: mapping of images, masks, boxes and points, forth and back. Does not belong here: which photos exist.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

PADDING = 128
"""Gray value of the bars beside a photo that is not square."""
MAX_ASPECT_DIFFERENCE = 0.01
"""Two photos whose aspect ratios differ by more show different framings: masks of one do not fit the other."""


@dataclass(frozen=True)
class Geometry:
    """processed = scale * photo + offset, in pixels whose edges are integers (a pixel covers [i, i+1)).

    Attributes:
        width, height: of the photo.
        size: side of the processed square.
        scale: processed pixels per photo pixel.
        offset_x, offset_y: of the photo's top-left corner in the square; whole pixels.
    """

    width: int
    height: int
    size: int
    scale: float
    offset_x: int
    offset_y: int

    @property
    def inner(self) -> tuple[int, int]:
        """Width and height that the photo covers in the square, whole pixels."""
        return max(1, round(self.width * self.scale)), max(1, round(self.height * self.scale))

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns that the photo covers in the square."""
        width, height = self.inner
        return slice(self.offset_y, self.offset_y + height), slice(self.offset_x, self.offset_x + width)

    def image(self, photo: np.ndarray) -> np.ndarray:
        """Photo (H, W, C) uint8 -> square (S, S, C); bars are gray. A photo that is this square comes back itself."""
        if (self.width, self.height) == self.inner == (self.size, self.size):
            return photo
        square = np.full((self.size, self.size, photo.shape[2]), PADDING, np.uint8)
        square[self.window] = cv2.resize(photo, self.inner, interpolation=self._interpolation())
        return square

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Mask (H, W) bool -> square (S, S) bool; a shrunk pixel is set where at least half of it is covered."""
        if (self.width, self.height) == self.inner == (self.size, self.size):
            return mask
        square = np.zeros((self.size, self.size), bool)
        if self.scale < 1:
            covered = cv2.resize(mask.astype(np.uint8) * 255, self.inner, interpolation=cv2.INTER_AREA) >= 128
        else:
            covered = cv2.resize(mask.astype(np.uint8), self.inner, interpolation=cv2.INTER_NEAREST) > 0
        square[self.window] = covered
        return square

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points (N, 2) as x, y in the photo -> in the square, float32."""
        return np.asarray(points, np.float32) * np.float32(self.scale) + self._offset()

    def box(self, box: np.ndarray) -> np.ndarray:
        """Box (4,) x1, y1, x2, y2 in the photo -> in the square, float32."""
        return self.points(np.asarray(box, np.float32).reshape(2, 2)).reshape(4)

    def image_back(self, square: np.ndarray) -> np.ndarray:
        """Square (S, S, C) uint8 -> photo size (H, W, C): the bars are cut off, the rest resized."""
        inside = np.ascontiguousarray(square[self.window])
        if inside.shape[:2] == (self.height, self.width):
            return inside
        interpolation = cv2.INTER_CUBIC if self.scale < 1 else cv2.INTER_AREA
        return cv2.resize(inside, (self.width, self.height), interpolation=interpolation)

    def mask_back(self, square: np.ndarray) -> np.ndarray:
        """Mask (S, S) bool -> photo size (H, W) bool, smooth along the outline."""
        inside = square[self.window]
        if inside.shape == (self.height, self.width):
            return inside.copy()
        size = (self.width, self.height)
        return cv2.resize(inside.astype(np.uint8) * 255, size, interpolation=cv2.INTER_LINEAR) >= 128

    def points_back(self, points: np.ndarray) -> np.ndarray:
        """Points (N, 2) in the square -> in the photo, float32."""
        return (np.asarray(points, np.float32) - self._offset()) / np.float32(self.scale)

    def box_back(self, box: np.ndarray) -> np.ndarray:
        """Box (4,) in the square -> in the photo, float32."""
        return self.points_back(np.asarray(box, np.float32).reshape(2, 2)).reshape(4)

    def _offset(self) -> np.ndarray:
        return np.array([self.offset_x, self.offset_y], np.float32)

    def _interpolation(self) -> int:
        return cv2.INTER_AREA if self.scale < 1 else cv2.INTER_CUBIC


def letterbox(width: int, height: int, size: int = 512) -> Geometry:
    """The geometry that fits a width x height photo into a size x size square: the longer side fills it."""
    scale = size / max(width, height)
    inner_width, inner_height = max(1, round(width * scale)), max(1, round(height * scale))
    return Geometry(width, height, size, scale, (size - inner_width) // 2, (size - inner_height) // 2)


def same_framing(width: int, height: int, other_width: int, other_height: int) -> bool:
    """Do two sizes have the same aspect ratio, so that one photo may be the other scaled?"""
    return abs(width * other_height / (height * other_width) - 1) <= MAX_ASPECT_DIFFERENCE
