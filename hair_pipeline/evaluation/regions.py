"""Which pixels a metric looks at: hair crop, hair-skin ring, seam. One rule for real and generated images.

Belongs here: masks and crops derived from hair and face masks. Does not belong here: what is measured in them.
"""

from __future__ import annotations

import cv2
import numpy as np

RING_WIDTH = 0.04
"""Half width of the hair-skin ring, in image sides: 20 pixels at 512."""
GRAY = 128


def grown(mask: np.ndarray, radius: int) -> np.ndarray:
    """The mask grown by `radius` pixels (elliptic); bool (H, W)."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.dilate(mask.astype(np.uint8), kernel) > 0


def boundary_ring(hair_mask: np.ndarray, face_mask: np.ndarray) -> np.ndarray:
    """Pixels within `RING_WIDTH` of both hair and skin: forehead, temples, ears, hair roots.

    Without a face mask the ring lies on both sides of the hair's whole outline.

    Args:
        hair_mask, face_mask: bool (H, W).

    Returns:
        bool (H, W); empty where hair and skin do not meet.
    """
    radius = max(1, round(RING_WIDTH * hair_mask.shape[0]))
    other = face_mask if face_mask.any() else ~hair_mask
    return grown(hair_mask, radius) & grown(other, radius)


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(x, y, width, height) of the smallest box around the mask, which must not be empty."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return x, y, width, height


def bounding_square(mask: np.ndarray, margin: float = 0.05) -> tuple[int, int, int]:
    """(x, y, side) of the smallest square around the mask with a margin, inside the image (H = W).

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        raise ValueError("the mask is empty")
    limit = min(mask.shape)
    extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    side = int(min(limit, round(extent * (1 + 2 * margin))))
    x = int(np.clip((columns[0] + columns[-1] + 1 - side) // 2, 0, mask.shape[1] - side))
    y = int(np.clip((rows[0] + rows[-1] + 1 - side) // 2, 0, mask.shape[0] - side))
    return x, y, side


def masked_crop(image: np.ndarray, mask: np.ndarray, side: int) -> np.ndarray:
    """The square around the mask, everything outside the mask gray, resized to `side`; uint8 (side, side, 3)."""
    x, y, extent = bounding_square(mask)
    crop = np.where(mask[..., None], image, np.uint8(GRAY))[y : y + extent, x : x + extent]
    return cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)


def mask_crop(mask: np.ndarray, side: int) -> np.ndarray:
    """The mask in the frame of `masked_crop`; bool (side, side)."""
    x, y, extent = bounding_square(mask)
    crop = mask[y : y + extent, x : x + extent].astype(np.float32)
    return cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA) > 0.5


SEAM_SIDE = 0.42
"""Side of an enlarged place, in face heights."""


def seam_places(hair_mask: np.ndarray, face_mask: np.ndarray, box: np.ndarray | None) -> list[tuple[int, int, int]]:
    """Where people look for seams: forehead, left ear, right ear (in the picture), hair roots (the top of the head).

    Args:
        hair_mask, face_mask: bool (H, W) with H = W. box: (4,) of the face; without one, the face mask's.

    Returns:
        One square (x, y, side) inside the image per place, in this order; empty where there is no face.
    """
    if box is None and not face_mask.any():
        return []
    if box is None:
        x, y, width, height = bounding_box(face_mask)
        box = np.array([x, y, x + width, y + height])
    x1, y1, x2, y2 = (float(value) for value in box)
    side = int(np.clip(round(SEAM_SIDE * (y2 - y1)), 8, hair_mask.shape[0]))
    middle = round((x1 + x2) / 2)
    column = hair_mask[:, int(np.clip(middle, 0, hair_mask.shape[1] - 1))]
    crown = float(np.argmax(column)) if column.any() else y1 - side / 2
    row = (y1 + y2) / 2
    centres = ((middle, y1), (x1, row), (x2, row), (middle, crown + side / 3))
    limit = hair_mask.shape[0] - side
    return [(int(np.clip(cx - side / 2, 0, limit)), int(np.clip(cy - side / 2, 0, limit)), side) for cx, cy in centres]
