"""The hair alone: RGBA with nothing of the photo left under the transparent part.

Belongs here: cutting the hair out. Does not belong here: patches of it (`patches`).
"""

from __future__ import annotations

import cv2
import numpy as np


def make_hair_only(image: np.ndarray, hair_mask: np.ndarray) -> np.ndarray:
    """Cut the hair out.

    Args:
        image: (S, S, 3) uint8 RGB.
        hair_mask: (S, S) bool.

    Returns:
        (S, S, 4) uint8 RGBA: alpha 255 in the hair and 0 elsewhere; RGB is exactly 0 where alpha is 0.
    """
    alpha = hair_mask.astype(np.uint8) * np.uint8(255)
    return cv2.merge([*cv2.split(cv2.bitwise_and(image, image, mask=alpha)), alpha])
