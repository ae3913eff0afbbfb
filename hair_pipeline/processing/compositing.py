"""Pasting generated hair back into a photo so that nothing outside the mask changes.

Belongs here: feathering and blending. Does not belong here: mapping between photo and square (`inputs.geometry`).
"""

from __future__ import annotations

import cv2
import numpy as np


def feather(mask: np.ndarray, px: float) -> np.ndarray:
    """Soft alpha of a mask that never leaves it.

    Args:
        mask: (H, W) bool.
        px: width of the ramp inside the mask, pixels; 0 gives a hard edge.

    Returns:
        (H, W) float32 in [0, 1]: exactly 0 outside the mask, rising smoothly to 1 at `px` inside its border. The
        image's own border is no border of the mask.
    """
    if px <= 0 or mask.all():
        return mask.astype(np.float32)
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    ramp = np.clip(distance / np.float32(px + 1), 0, 1)
    return (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)


def paste_back(photo: np.ndarray, generated: np.ndarray, mask: np.ndarray, feather_px: float) -> np.ndarray:
    """Blend `generated` over `photo` inside a feathered mask.

    Args:
        photo, generated: (H, W, 3) uint8.
        mask: (H, W) bool.
        feather_px: see `feather`.

    Returns:
        (H, W, 3) uint8, byte-identical to `photo` outside the mask.
    """
    result = photo.copy()
    alpha = feather(mask, feather_px)
    inside = alpha > 0
    weight = alpha[inside][:, None]
    blended = weight * generated[inside].astype(np.float32) + (1 - weight) * photo[inside].astype(np.float32)
    result[inside] = np.round(blended).astype(np.uint8)
    return result
