"""The rim of hair that a face parser's mask leaves on the face: found by its colour, counted as hair.

Belongs here: completing a hair mask over the face. Does not belong here: growing it for removal (`processing.bald`).
"""

from __future__ import annotations

import cv2
import numpy as np

BROW = 0.2
"""Just above the brows, as a share of a face box's height (RetinaFace and SCRFD boxes; the eyes are at 0.35 to 0.40).

Lower down the brows would be removed with the hair, and a filling would carry the eyelids' colour up the forehead.
"""
CHEEK = 0.65
"""Above the mouth, as a share of the box's height: below it a beard has the colour of hair, too."""
REACH = 0.05
"""How far from the mask hair is looked for, in heights of the face's box: 6 pixels for a face of 120."""
SIDE = 0.1
"""Share of the box's width on each side where, below the brows too, nothing but hair is dark or light as hair."""
BORDER = 2.0
"""Pixels from the hair mask: what is looked at to tell whether the mask is cut tight."""
TIGHT = 0.75
"""Share of the border that looks like hair from which on the mask is taken for cut tight.

Not 1: the border of a tight mask holds some skin. Not less: shade and single strands line masks that fit, too.
"""
NEIGHBOURHOOD = 3.0
"""Half the side of the square that hair and skin are compared in, in reaches."""
MIN_CONTRAST = 40.0
"""RGB units of 0-255 between the colours of hair and skin below which they are not told apart."""
LIKE_HAIR = 0.6
"""How far from the skin's colour to the hair's a pixel must lie to be hair."""
Masks = tuple[np.ndarray, np.ndarray]


def with_rim(image: np.ndarray, hair_mask: np.ndarray, face_mask: np.ndarray, box: np.ndarray | None) -> Masks:
    """Move from the face to the hair what is hair by its colour, where the hair mask is cut too tight.

    Parsers often cut the hair two to four pixels too tight (at 512 pixels) and call the rim skin. Left there, it keeps
    the outline of the fringe, and a filling that starts from it paints the bald head in the colour of the hair.

    Args:
        image: (H, W, 3) uint8 RGB. hair_mask, face_mask: (H, W) bool, disjoint.
        box: x1, y1, x2, y2 of the face in pixels; None leaves the masks as they are.

    Returns:
        hair, face: (H, W) bool, disjoint; the masks given, where they fit. Otherwise hair has gained the pixels of the
        face that are no further than `REACH` from it, joined to it and coloured like it; brows, eyes and beard stay.
    """
    if box is None or not face_mask.any():
        return hair_mask, face_mask
    height, width = face_mask.shape
    box = np.clip(box, (-width, -height) * 2, (2 * width, 2 * height) * 2)  # a detector's box may be anywhere
    reach = max(1.0, REACH * float(box[3] - box[1]))
    window = _around(face_mask, round(reach) + 2)
    hair, face = hair_mask[window], face_mask[window]
    distance = cv2.distanceTransform((~hair).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    near = face & (distance <= reach)
    like_hair = _like_hair(image[window], hair, face & ~near, near, reach)
    if not _is_tight(like_hair, near & (distance < BORDER)):
        return hair_mask, face_mask
    rim = _joined(like_hair & ~_features(window, box), hair)
    completed, rest = hair_mask.copy(), face_mask.copy()
    completed[window] |= rim
    rest[window] &= ~rim
    return completed, rest


def _is_tight(like_hair: np.ndarray, border: np.ndarray) -> bool:
    pixels = np.count_nonzero(border)
    return bool(pixels) and int(np.count_nonzero(like_hair & border)) >= TIGHT * int(pixels)


def _around(face: np.ndarray, margin: int) -> tuple[slice, slice]:
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(face).view(np.uint8))
    bottom, right = (min(end + margin, limit) for end, limit in zip((y + height, x + width), face.shape, strict=True))
    return slice(max(0, y - margin), bottom), slice(max(0, x - margin), right)


def _features(window: tuple[slice, slice], box: np.ndarray) -> np.ndarray:
    """Where brows, eyes and a beard may be: below the forehead away from the sides of the box, and around the mouth."""
    x1, y1, x2, y2 = box.tolist()
    rows, columns = (np.arange(part.start, part.stop) for part in window)
    inner = SIDE * (x2 - x1)
    across = (columns >= x1 + inner) & (columns <= x2 - inner)
    brow, cheek = (y1 + share * (y2 - y1) for share in (BROW, CHEEK))
    return ((rows >= brow)[:, None] & across[None, :]) | (rows >= cheek)[:, None]


def _like_hair(image: np.ndarray, hair: np.ndarray, skin: np.ndarray, near: np.ndarray, reach: float) -> np.ndarray:
    """Which pixels of `near` have the colour of the hair around them rather than that of the skin around them.

    Colours are compared in the neighbourhood, since light and shade change both along the rim; its means are taken
    over every second pixel or fewer where the photo is large.
    """
    step = max(1, round(reach / 3))
    side = 2 * round(NEIGHBOURHOOD * reach / step) + 1
    rows, columns = np.nonzero(near)
    fewer = slice(None, None, step), slice(None, None, step)
    of_hair, of_skin = (_means(image[fewer], part[fewer], side)[rows // step, columns // step] for part in (hair, skin))
    apart = of_hair - of_skin
    contrast = np.einsum("nc,nc->n", apart, apart)
    share = np.einsum("nc,nc->n", image[rows, columns] - of_skin, apart)
    like_hair = np.zeros_like(near)
    like_hair[rows, columns] = (contrast >= MIN_CONTRAST**2) & (share >= LIKE_HAIR * contrast)
    return like_hair


def _means(image: np.ndarray, mask: np.ndarray, side: int) -> np.ndarray:
    """Mean colour of the mask's pixels in the square around every pixel, (H, W, 3) float32; NaN without any."""
    weight = mask.astype(np.float32)
    total = cv2.blur(image * weight[..., None], (side, side), borderType=cv2.BORDER_CONSTANT)
    count = cv2.blur(weight, (side, side), borderType=cv2.BORDER_CONSTANT)[..., None]
    return np.where(count > 1e-6, total / np.maximum(count, 1e-6), np.nan)


def _joined(near: np.ndarray, hair: np.ndarray) -> np.ndarray:
    """The parts of `near` that touch the hair."""
    _, parts = cv2.connectedComponents(near.view(np.uint8), connectivity=8)
    touching = cv2.dilate(hair.view(np.uint8), np.ones((3, 3), np.uint8)) > 0
    joined = np.zeros(int(parts.max()) + 1, bool)
    joined[np.unique(parts[touching & near])] = True
    joined[0] = False
    return joined[parts]
