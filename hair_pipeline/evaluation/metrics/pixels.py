"""Pixel by pixel against the photo: PSNR and SSIM inside a region.

Belongs here: metrics that need no network and a ground truth. Does not belong here: the mask's border (`seam`).
"""

from __future__ import annotations

import numpy as np
from skimage.metrics import structural_similarity

PSNR_LIMIT = 100.0
"""PSNR of identical pixels, whose true value is infinite; no 8-bit pictures that differ come near it."""


def psnr(photo: np.ndarray, output: np.ndarray, region: np.ndarray) -> float:
    """Peak signal-to-noise ratio inside a region.

    Unit: dB. Direction: higher is better; `PSNR_LIMIT` where nothing differs. Source: 10 log10(255^2 / MSE).

    Args:
        photo, output: uint8 RGB (H, W, 3). region: bool (H, W).

    Returns:
        NaN for an empty region.
    """
    if not region.any():
        return float("nan")
    error = float(np.mean((photo[region].astype(np.float64) - output[region].astype(np.float64)) ** 2))
    return PSNR_LIMIT if error == 0 else min(PSNR_LIMIT, float(10 * np.log10(255.0**2 / error)))


def similarity_map(photo: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Local structural similarity of the luminance, float32 (H, W) in [-1, 1].

    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861, with its Gaussian window (sigma 1.5).
    """
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    _, local = structural_similarity(_luminance(photo), _luminance(output), data_range=255.0, full=True, **window)
    return np.asarray(local)


def ssim(local: np.ndarray, region: np.ndarray) -> float:
    """Structural similarity averaged over a region.

    Unit: none, -1 to 1. Direction: higher is better; 1 where nothing differs.

    Args:
        local: of `similarity_map`. region: bool (H, W).

    Returns:
        NaN for an empty region.
    """
    return float(local[region].mean()) if region.any() else float("nan")


def _luminance(image: np.ndarray) -> np.ndarray:
    """ITU-R BT.601 luma, float32 (H, W)."""
    return image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
