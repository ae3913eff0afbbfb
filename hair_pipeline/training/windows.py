"""Windows of an image that are decoded for the pixel losses: around the hair and around the face.

Belongs here: which latent cells a window covers, and cutting it out of latents and pixels.
Does not belong here: decoding, and what is compared inside a window (`pixel_losses`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hair_pipeline.models.recogniser import crop_square

_MARGIN = 1
"""Cells around what a window is for: a decoder sees little context at its border."""

_MULTIPLE = 4
"""Sides are multiples of so many cells, so that few different shapes occur."""

_SMALLEST_LIMIT = 16
"""Windows of so many cells are always allowed: below, decoding costs little and texture is hard to see."""


_TURNS = (0.7548776662466927, 0.5698402909980532)
"""Multiples of these two, modulo 1, cover the unit square evenly (the R2 sequence, Roberts 2018)."""


@dataclass(frozen=True, slots=True)
class Window:
    """Rows `top` to `top + height` and columns `left` to `left + width` of the latents, in cells."""

    top: int
    left: int
    height: int
    width: int

    def cells(self, latents: Tensor) -> Tensor:
        """(..., h, w) -> (..., height, width)."""
        return latents[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def pixels(self, images: Tensor, factor: int) -> Tensor:
        """(..., H, W) -> the window's part of an image with `factor` pixels per cell."""
        return Window(self.top * factor, self.left * factor, self.height * factor, self.width * factor).cells(images)

    def move_box(self, box: Tensor, factor: int) -> Tensor:
        """A box (..., 4) or points (..., 2) in pixels of the image -> in pixels of the window."""
        corner = box.new_tensor([self.left, self.top]) * factor
        return box - corner.repeat(box.shape[-1] // 2)

    def paste(self, part: Tensor, image: Tensor, factor: int) -> Tensor:
        """The image (B, C, H, W) with the decoded window in it; gradients flow to the part alone."""
        top, left = self.top * factor, self.left * factor
        pasted = image.clone()
        pasted[..., top : top + part.shape[-2], left : left + part.shape[-1]] = part
        return pasted


def hair_window(hair: Tensor, largest: float, choice: int) -> Window | None:
    """The window around the hair, no side longer than `largest` times the image's.

    Hair that is larger is looked at in parts: the window then lies somewhere on its bounding box, and `choice` says
    where, so that all of it has its turn.

    Args:
        hair: (h, w) share of hair per cell.
        largest: in (0, 1].
        choice: any number >= 0 that differs from step to step.

    Returns:
        None where there is no hair.
    """
    found = torch.nonzero(hair > 0)
    if not len(found):
        return None
    low, high = found.amin(0).tolist(), found.amax(0).tolist()
    spans = [
        _span(low[axis], high[axis] + 1, size, largest_side(size, largest), choice * _TURNS[axis] % 1)
        for axis, size in enumerate(hair.shape)
    ]
    return Window(spans[0][0], spans[1][0], spans[0][1], spans[1][1])


def face_window(box: Tensor, size: Sequence[int], factor: int) -> Window:
    """The window that holds everything a recogniser sees of a face.

    Args:
        box: (4,) x1, y1, x2, y2 in pixels.
        size: (h, w) of the latents.
        factor: pixels per cell.
    """
    centre_x, centre_y, side = (float(value) for value in crop_square(box[None])[0])
    spans = []
    for centre, cells in ((centre_y, size[0]), (centre_x, size[1])):
        low = min(max(math.floor((centre - side / 2) / factor), 0), cells - 1)
        high = max(min(math.ceil((centre + side / 2) / factor), cells), low + 1)
        spans.append(_span(low, high, cells, cells, 0.0))
    return Window(spans[0][0], spans[1][0], spans[0][1], spans[1][1])


def largest_side(size: int, largest: float) -> int:
    """The most cells a window around the hair has along a side of `size` cells; `largest` as in `hair_window`."""
    limit = math.floor(size * largest)
    return min(size, max(limit - limit % _MULTIPLE, _SMALLEST_LIMIT)) if largest < 1 else size


def _span(low: int, high: int, size: int, limit: int, share: float) -> tuple[int, int]:
    """(start, length) of a window over the cells [low, high) with margin, inside [0, size)."""
    wanted = high - low + 2 * _MARGIN
    length = min(-(-wanted // _MULTIPLE) * _MULTIPLE, limit, size)
    if wanted > length:  # does not fit: start anywhere from the first cell to the last that leaves the window covered
        places = max(1, high - low - length + 2 * _MARGIN + 1)
        start = low - _MARGIN + int(share * places)
    else:
        start = low - _MARGIN - (length - wanted) // 2
    return min(max(start, 0), size - length), length
