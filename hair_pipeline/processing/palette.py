"""The colours of hair, from roots to tips.

Belongs here: a few numbers that say what colour hair is. Does not belong here: texture (`models.patch_encoder`), which
is trained to be the same in every colour.
"""

from __future__ import annotations

import cv2
import numpy as np

PARTS = 3
"""Roots, lengths and ends: the upper, middle and lower third of the hair's pixels."""
PALETTE_DIM = 3 * PARTS


def palette(image: np.ndarray, hair: np.ndarray) -> np.ndarray:
    """Mean CIELAB colour of each third of the hair, scaled to about -1 to 1; zeros where there is no hair.

    Args:
        image: uint8 RGB (H, W, 3). hair: bool (H, W).

    Returns:
        float32 (PALETTE_DIM,): lightness less 50, a and b, each divided by 50, of roots, lengths and ends.
    """
    pixels = image[hair]  # row by row, so from above
    if not len(pixels):
        return np.zeros(PALETTE_DIM, np.float32)
    colours = cv2.cvtColor(pixels[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    thirds = [part.mean(0) if len(part) else colours.mean(0) for part in np.array_split(colours, PARTS)]
    values: np.ndarray = (np.concatenate(thirds) - np.tile([50.0, 0.0, 0.0], PARTS)) / 50
    return values.astype(np.float32)
