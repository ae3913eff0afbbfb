"""Small conversions between uint8 images and tensors.

Belongs here: resizing, backgrounds and ranges. Does not belong here: masks at latent size (`models.masks`).
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

BACKGROUND = 128
"""Hair-only images are laid on mid-gray: 0 in [-1, 1], which is also what an inpainting UNet sees in a hole."""


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 127.5 - 1


def to_image(tensor: Tensor) -> np.ndarray:
    """(3, H, W) nominally in [-1, 1] -> (H, W, 3) uint8."""
    pixels = ((tensor.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    image: np.ndarray = pixels.permute(1, 2, 0).contiguous().numpy()
    return image


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """Resize a square image to `side` by area averaging (or bilinear when it grows)."""
    if image.shape[0] == side and image.shape[1] == side:
        return image
    method = cv2.INTER_AREA if image.shape[0] > side else cv2.INTER_LINEAR
    return cv2.resize(image, (side, side), interpolation=method)


def on_background(rgba: np.ndarray) -> np.ndarray:
    """Lay an RGBA image on the mid-gray background. (H, W, 4) uint8 -> (H, W, 3) uint8."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    mixed = rgba[..., :3] * alpha + BACKGROUND * (1 - alpha)
    return np.asarray(mixed.round(), np.uint8)
