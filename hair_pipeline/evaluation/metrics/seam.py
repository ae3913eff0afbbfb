"""What paste-back leaves behind: a halo or a blurred rim along the mask border, and bytes that changed elsewhere.

Belongs here: metrics on pixels along and outside the repaint mask. Does not belong here: anything learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

BAND = 0.008
"""Width of one band along the border, in image sides: 4 pixels at 512."""
SMOOTH = 8.0
"""Delta E; where the photo's own step across the border is larger, there is an edge of its own."""


def halo(photo: np.ndarray, output: np.ndarray, repaint_mask: np.ndarray) -> float:
    """How much more visible the mask border is in the output than in the photo, in CIE76 colour difference.

    Along the border three bands are averaged locally: inside (repainted), rim (on the border), outside (kept). Two
    faults are added up. Overshoot: how far the rim's colour lies off the straight line between inside and outside (a
    clean edge or a blend lies on it; a light, dark or leftover rim does not). Step: the difference between inside
    and outside, only where the photo itself is smooth (below `SMOOTH`), since elsewhere hair of another colour would
    count. The same on the photo is subtracted.

    Unit: Delta E (about 2.3 is just noticeable). Direction: lower is better; 0 means the border shows no more than
    in the photo itself, below 0 less. Source: this project; colour difference after CIE 1976.

    Args:
        photo, output: uint8 RGB (H, W, 3).
        repaint_mask: bool (H, W); where the output may differ.

    Returns:
        NaN when the mask has no border inside the picture.
    """
    return Border(photo, repaint_mask).halo(output)


@dataclass(frozen=True)
class _Across:
    """Colour differences at every border pixel, (n,) each, in Delta E."""

    step: np.ndarray
    overshoot: np.ndarray


class Border:
    """A mask's border in a photo, with which any number of pictures of it can be compared.

    Args:
        photo: uint8 RGB (H, W, 3). mask: bool (H, W).
    """

    def __init__(self, photo: np.ndarray, mask: np.ndarray) -> None:
        band = max(2, round(BAND * mask.shape[0]))
        distance = _signed_distance(mask)
        self._bands = (
            _Band((distance > band) & (distance <= 2 * band), 3 * band),
            _Band((distance < -band) & (distance >= -2 * band), 3 * band),
            _Band(np.abs(distance) <= band, band),
        )
        self._border = np.abs(distance) <= 1
        for part in self._bands:
            self._border &= part.near
        self._real = self._across(photo)

    def halo(self, output: np.ndarray) -> float:
        """`halo` of a picture (H, W, 3) uint8 RGB."""
        if not self._border.any():
            return float("nan")
        real, made = self._real, self._across(output)
        smooth = real.step < SMOOTH
        return float(np.mean(made.overshoot - real.overshoot) + np.mean(np.where(smooth, made.step - real.step, 0.0)))

    def _across(self, image: np.ndarray) -> _Across:
        """Step and overshoot along the border."""
        lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        a, b, p = (part.mean(lab)[self._border] for part in self._bands)
        span = b - a
        along = np.clip((span * (p - a)).sum(1) / np.maximum((span**2).sum(1), 1e-6), 0, 1)
        return _Across(np.linalg.norm(span, axis=1), np.linalg.norm(p - (a + along[:, None] * span), axis=1))


class _Band:
    """Pixels of a region (H, W) bool, averaged around every pixel in a square of `radius`; `near`: there are some."""

    def __init__(self, region: np.ndarray, radius: int) -> None:
        self._size = (2 * radius + 1, 2 * radius + 1)
        self._weight = region.astype(np.float32)
        self._total = self._summed(self._weight)
        self.near: np.ndarray = self._total > 0.5

    def mean(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) float32."""
        total: np.ndarray = self._summed(image * self._weight[..., None])
        return total / np.maximum(self._total, 1.0)[..., None]

    def _summed(self, values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values, -1, self._size, normalize=False, borderType=cv2.BORDER_CONSTANT)


def rim_sharpness(photo: np.ndarray, output: np.ndarray, repaint_mask: np.ndarray, hair_mask: np.ndarray) -> float:
    """Fine detail of the hair's edge in the output against the photo, as a log2 ratio of gradient energy.

    Unit: octaves; -1 is half the detail. Direction: near 0 is better, negative is a blurred rim, positive is noise.
    Measured within two bands of the hair's outline, inside the repainted region only. Source: this project; gradient
    energy (Tenengrad, Krotkov 1988).

    Returns:
        NaN when the hair has no outline inside the repainted region.
    """
    band = max(2, round(BAND * photo.shape[0]))
    rim = (np.abs(_signed_distance(hair_mask)) <= 2 * band) & repaint_mask
    if not rim.any():
        return float("nan")
    energy = [float(_gradient_energy(image)[rim].mean()) + 1.0 for image in (photo, output)]
    return float(np.log2(energy[1] / energy[0]))


def untouched_share_changed(photo: np.ndarray, output: np.ndarray, allowed: np.ndarray) -> float:
    """Share of the bytes outside the allowed region that differ from the photo.

    Unit: share, 0 to 1. Direction: lower is better; anything above 0 after paste-back is a fault. Source: this
    project's guarantee that a customer's picture is byte-identical outside the feathered mask.

    Args:
        photo, output: uint8 RGB (H, W, 3). allowed: bool (H, W), the feathered mask's extent.

    Returns:
        NaN when nothing lies outside.
    """
    if allowed.all():
        return float("nan")
    return float((photo != output)[~allowed].mean())


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Pixels to the border, positive inside; the picture's own frame is no border. float32 (H, W)."""
    inside = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    outside = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    distance: np.ndarray = inside - outside
    return distance


def _gradient_energy(image: np.ndarray) -> np.ndarray:
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    energy: np.ndarray = cv2.Sobel(gray, cv2.CV_32F, 1, 0) ** 2 + cv2.Sobel(gray, cv2.CV_32F, 0, 1) ** 2
    return energy
