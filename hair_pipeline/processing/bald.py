"""Bald images: the hair removed and its place filled, and the masks that say what is repainted.

Belongs here: growing the hair mask and filling it. Does not belong here: the generated hair (`models`) and reading
of images.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from hair_pipeline.profile import BaldConfig

FACE_HEIGHT_OF_IMAGE = 0.3
"""Face height, as a share of the image's side, where no face is known."""
GRAY = 128
BLUR_SCALE = 8
"""The masked Gaussian runs at an eighth of the size."""


def face_height(face_mask: np.ndarray) -> float:
    """Height of the face in pixels, from a mask that may include ears and neck; 0.3 of the side without one.

    The width of a face is 0.7-0.8 of its height, which the neck does not change: the 90th percentile of the row
    widths over 0.8, but no more than the mask's own height.
    """
    widths = np.count_nonzero(face_mask, axis=1)
    widths = widths[widths > 0]
    if widths.size < 8:
        return FACE_HEIGHT_OF_IMAGE * max(face_mask.shape)
    return float(min(np.percentile(widths, 90) / 0.8, widths.size))


def make_bald(
    image: np.ndarray,
    hair_mask: np.ndarray,
    face_mask: np.ndarray,
    config: BaldConfig,
    *,
    extra_growth: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Remove the hair.

    Args:
        image: (H, W, 3) uint8 RGB.
        hair_mask: (H, W) bool.
        face_mask: (H, W) bool, all False when unknown.
        config: method, growth and scale.
        extra_growth: added to `config.growth`, in face heights.

    Returns:
        The bald image (H, W, 3) uint8, byte-identical to `image` outside the repaint mask, and the repaint mask
        (H, W) bool: the hair mask grown, without the face's core. The fill uses only colours from outside it.
    """
    repaint = repaint_mask(hair_mask, face_mask, config.growth + extra_growth)
    return fill(image, repaint, config), repaint


def repaint_mask(hair_mask: np.ndarray, face_mask: np.ndarray, growth: float) -> np.ndarray:
    """Grow the hair mask by `growth` face heights and close its small holes.

    Over the face it grows only 0.4 times as far: the rim of the hair goes, eyes under a fringe stay. Crumbs of face
    or background between strands, smaller than the growth, are repainted too.

    Returns:
        (H, W) bool, holding the hair mask.
    """
    radius = growth * face_height(face_mask)
    distance = _distance_to(hair_mask)
    core = _open(face_mask & (distance > 0.4 * radius), radius / 3)
    grown = _fill_holes(distance <= radius, core, radius)
    return (grown & ~core) | hair_mask


def vary_mask(hair_mask: np.ndarray, face_mask: np.ndarray, seed: int) -> np.ndarray:
    """A random mask around the hair, so that the outline does not give the hairstyle away.

    One of: a larger growth, a smooth uneven growth, the boxes around the hair's parts, the convex hull; always
    without the core of the face.

    Returns:
        (H, W) bool, holding the hair mask; the same for the same seed.
    """
    random = np.random.default_rng([seed, 0x6261_6C64])
    height = face_height(face_mask)
    kind = int(random.integers(4))
    if kind == 0:
        varied = _dilate(hair_mask, float(random.uniform(0.05, 0.3)) * height)
    elif kind == 1:
        varied = _uneven_growth(hair_mask, height, random)
    else:
        varied = np.zeros_like(hair_mask)
        shape = _box if kind == 2 else _hull
        contours, _ = cv2.findContours(hair_mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        margin = round(float(random.uniform(0.0, 0.15)) * height)
        for contour in contours:
            if cv2.contourArea(contour) > 0.01 * hair_mask.sum():
                shape(varied, contour, margin)
        varied = _dilate(varied | hair_mask, 0.06 * height)
    core = _open(face_mask & ~_dilate(hair_mask, 0.02 * height), 0.03 * height)
    return (varied & ~core) | hair_mask


def _uneven_growth(mask: np.ndarray, height: float, random: np.random.Generator) -> np.ndarray:
    """Grow by a distance that changes smoothly from place to place, up to 0.5 face heights."""
    coarse = random.uniform(0.0, 0.5, (6, 6)).astype(np.float32) * np.float32(height)
    reach = cv2.resize(coarse, (mask.shape[1], mask.shape[0]), interpolation=cv2.INTER_CUBIC)
    return _distance_to(mask) <= np.maximum(reach, 0.05 * height)


def _box(mask: np.ndarray, contour: np.ndarray, margin: int) -> None:
    x, y, width, height = cv2.boundingRect(contour)
    mask[max(0, y - margin) : y + height + margin, max(0, x - margin) : x + width + margin] = True


def _hull(mask: np.ndarray, contour: np.ndarray, margin: int) -> None:
    canvas = np.zeros(mask.shape, np.uint8)
    cv2.fillPoly(canvas, [cv2.convexHull(contour)], 1)
    mask |= _dilate(canvas.astype(bool), margin)


def _dilate(mask: np.ndarray, radius: float) -> np.ndarray:
    """Grow a mask by a disc of `radius` pixels; the cost does not depend on the radius."""
    return mask.copy() if radius < 1 else _distance_to(mask) <= radius


def _distance_to(mask: np.ndarray) -> np.ndarray:
    """Distance of every pixel to the mask, (H, W) float32; infinite when the mask is empty."""
    if not mask.any():
        return np.full(mask.shape, np.inf, np.float32)
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5).astype(np.float32, copy=False)


def _open(mask: np.ndarray, radius: float) -> np.ndarray:
    """Drop what a disc of `radius` pixels does not fit into."""
    if radius < 1 or not mask.any():
        return mask.copy()
    padded = np.pad(mask, 1, mode="edge").astype(np.uint8)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    return _dilate(distance > radius, radius) & mask


def _fill_holes(grown: np.ndarray, core: np.ndarray, radius: float) -> np.ndarray:
    """Fill holes that hold no face core and are smaller than a disc of three radii."""
    count, parts, statistics, _ = cv2.connectedComponentsWithStats((~grown).astype(np.uint8), connectivity=4)
    small = statistics[:, cv2.CC_STAT_AREA] < np.pi * (3 * radius) ** 2
    small[0] = False
    if count > 1 and small.any():
        small[np.unique(parts[core])] = False
        grown = grown | small[parts]
    return grown


def fill(image: np.ndarray, hole: np.ndarray, config: BaldConfig) -> np.ndarray:
    """Fill a hole from the colours around it; the rest stays byte-identical. Nothing of the hole's content is used.

    Args:
        image: (H, W, 3) uint8. hole: (H, W) bool.
        config: method and inpaint_scale.
    """
    result = image.copy()
    if not hole.any():
        return result
    if config.method == "gray" or hole.all():
        result[hole] = GRAY
        return result
    if config.method == "gaussian_blur":
        filled = _masked_blur(image, hole)
    else:
        flag = cv2.INPAINT_TELEA if config.method == "telea" else cv2.INPAINT_NS
        filled = _inpaint(image, hole, flag, config.inpaint_scale)
    result[hole] = filled[hole]
    return result


def _inpaint(image: np.ndarray, hole: np.ndarray, flag: int, scale: float) -> np.ndarray:
    """Classical inpainting at `scale`, in a window around the hole, enlarged smoothly."""
    return _in_window(image, hole, 32, scale, lambda small, gap: cv2.inpaint(small, gap, 3, flag))


def _masked_blur(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Normalised convolution: blur(image * known) / blur(known), narrow kernels where they reach, wide ones beyond.

    The kernel is a sum of Gaussians, each twice as wide and a hundredth as heavy as the one before, so that the fill
    is smooth, follows the nearest colours, and is defined in a hole of any size.
    """

    def blur(small: np.ndarray, gap: np.ndarray) -> np.ndarray:
        known = (gap == 0).astype(np.float32)
        colors = small.astype(np.float32) * known[..., None]
        total, weight = np.zeros_like(colors), np.zeros_like(known)
        sigma, share = 1.5, 1.0
        while sigma < max(known.shape):
            total += share * cv2.GaussianBlur(colors, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
            weight += share * cv2.GaussianBlur(known, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
            sigma, share = 2 * sigma, share / 100
        return np.clip(total / np.maximum(weight, 1e-12)[..., None], 0, 255).astype(np.uint8)

    return _in_window(image, hole, 64, 1 / BLUR_SCALE, blur)


def _in_window(
    image: np.ndarray,
    hole: np.ndarray,
    margin: int,
    scale: float,
    method: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Run a filling method on a smaller copy of the window around the hole.

    The copy's known pixels are means over known pixels only, so that nothing of the hole leaks into them.
    """
    x, y, width, height = cv2.boundingRect(hole.astype(np.uint8))
    top, left = max(0, y - margin), max(0, x - margin)
    window = slice(top, y + height + margin), slice(left, x + width + margin)
    part, gap = image[window], hole[window]
    small_size = max(1, round(gap.shape[1] * scale)), max(1, round(gap.shape[0] * scale))
    known = (~gap).astype(np.uint8)
    weight = cv2.resize(known.astype(np.float32), small_size, interpolation=cv2.INTER_AREA)
    colors = (part * known[..., None]).astype(np.float32)
    means = cv2.resize(colors, small_size, interpolation=cv2.INTER_AREA) / np.maximum(weight, 1e-6)[..., None]
    small_gap = (weight < 1e-3).astype(np.uint8)
    small = np.clip(np.round(means), 0, 255).astype(np.uint8)
    small[small_gap > 0] = 0
    filled = method(small, small_gap)
    result = image.copy()
    result[window] = cv2.resize(filled, (gap.shape[1], gap.shape[0]), interpolation=cv2.INTER_LINEAR)
    return result
