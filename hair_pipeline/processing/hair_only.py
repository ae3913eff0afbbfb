"""The hair alone: RGBA with nothing of the photo left under the transparent part.

Belongs here: cutting the hair out. Does not belong here: patches of it (`patches`).
"""

from __future__ import annotations

import cv2
import numpy as np

from hair_pipeline.profile import HairOnlyConfig

SOFT_BAND = 6
"""Pixels on both sides of the mask's border in which a soft alpha follows the strands, at 512 pixels."""
_SMOOTHNESS = 1e-4


def make_hair_only(image: np.ndarray, hair_mask: np.ndarray, config: HairOnlyConfig | None = None) -> np.ndarray:
    """Cut the hair out.

    Args:
        image: (S, S, 3) uint8 RGB.
        hair_mask: (S, S) bool.
        config: `soft_alpha`.

    Returns:
        (S, S, 4) uint8 RGBA: alpha 255 in the hair and 0 elsewhere, with values between in a narrow band along the
        mask's border when alpha is soft; RGB is exactly 0 where alpha is 0.
    """
    if config is not None and config.soft_alpha:
        alpha = _soft_alpha(image, hair_mask)
    else:
        alpha = np.ascontiguousarray(hair_mask).view(np.uint8) * np.uint8(255)
    alone = np.zeros((*alpha.shape, 4), np.uint8)
    left, top, width, height = cv2.boundingRect(alpha)
    window = slice(top, top + height), slice(left, left + width)
    if width:
        cv2.copyTo(cv2.cvtColor(image[window], cv2.COLOR_RGB2RGBA), alpha[window], alone[window])
    if config is not None and config.soft_alpha:
        cv2.insertChannel(alpha, alone, 3)
    return alone


def _soft_alpha(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mask guided by the photo's gray values (He et al., Guided Image Filtering, 2010), in a band along its border.

    Returns:
        (S, S) uint8: 255 deeper inside than the band, 0 further outside than it.
    """
    radius = max(2, round(SOFT_BAND * max(mask.shape) / 512))
    guide = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    hair = mask.astype(np.float32)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (2 * radius + 1, 2 * radius + 1))

    mean_guide, mean_hair = mean(guide), mean(hair)
    slope = (mean(guide * hair) - mean_guide * mean_hair) / (mean(guide * guide) - mean_guide**2 + _SMOOTHNESS)
    offset = mean_hair - slope * mean_guide
    alpha = mean(slope) * guide + mean(offset)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    sure = cv2.erode(mask.view(np.uint8), kernel, borderValue=1) > 0
    possible = cv2.dilate(mask.view(np.uint8), kernel) > 0
    alpha[sure], alpha[~possible] = 1, 0
    return np.clip(np.round(alpha * 255), 0, 255).astype(np.uint8)
