"""Bald images: the hair removed and its place filled, and the masks that say what is repainted.

Belongs here: growing the hair mask and filling it. Does not belong here: the generated hair (`models`) and reading
of images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from hair_pipeline.inputs.hair_rim import BROW
from hair_pipeline.profile import BaldConfig

FACE_HEIGHT_OF_IMAGE = 0.3
"""Face height, as a share of the image's side, where no face is known."""
GRAY = 128
BLUR_SCALE = 8
"""The masked Gaussian runs at an eighth of the size."""
INPAINT_RADIUS = 4
"""Pixels at full size: at half size it fills within 2.8/255 (root mean square) of radius 5 at full size."""
MIN_INPAINT_SIDE = 4
"""Pixels; in smaller images OpenCV's inpainting gives other pixels each time."""
BROWS_ABOVE_CHIN = 0.95
"""In face heights as `face_height` estimates them: from a face half covered by hair they come out short."""
BLUR_TRUST = 0.01
"""Weight of the next wider Gaussian, in known pixels."""


def face_height(face_mask: np.ndarray) -> float:
    """Height of the face in pixels, from a mask that may include ears and neck; 0.3 of the side without one.

    The width of a face is 0.7-0.8 of its height, which the neck does not change: the 90th percentile of the row
    widths over 0.8, but no more than the mask's own height.
    """
    if not face_mask.any():
        return FACE_HEIGHT_OF_IMAGE * max(face_mask.shape)
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
    box: np.ndarray | None = None,
    window: tuple[slice, slice] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Remove the hair.

    Args:
        image: (H, W, 3) uint8 RGB.
        hair_mask: (H, W) bool.
        face_mask: (H, W) bool, all False when unknown.
        config: method, growth and scale.
        box: x1, y1, x2, y2 of the face in pixels; None when unknown. What `config` hides of the face goes by it.
        window: rows and columns that the photo covers, as in `Sample`: the fill takes nothing from the bars beside it.

    Returns:
        The bald image (H, W, 3) uint8, byte-identical to `image` outside the repaint mask, and the repaint mask
        (H, W) bool: the hair mask grown, without the face's core. The fill uses only colours from outside it.
    """
    repaint = repaint_mask(hair_mask, face_mask, config, box)
    if window is None:
        return fill(image, repaint, config), repaint
    bald = image.copy()
    bald[window] = fill(image[window], repaint[window], config)
    return bald, repaint


def repaint_mask(
    hair_mask: np.ndarray,
    face_mask: np.ndarray,
    config: BaldConfig,
    box: np.ndarray | None = None,
) -> np.ndarray:
    """Grow the hair mask by `config.growth` face heights, close its small holes, add what else is hidden.

    Over the face it grows only 0.4 times as far: the rim of the hair goes, eyes under a fringe stay. Crumbs of face
    or background between strands, smaller than the growth, are repainted too. What `config.hide_forehead` and
    `config.hide_beside_jaw` name is repainted wherever there is hair at all, whatever the hairstyle.

    Returns:
        (H, W) bool, holding the hair mask.
    """
    height = face_height(face_mask)
    radius = config.growth * height
    # Distances need no more than four pixels per radius: the work is done on a smaller copy and enlarged smoothly.
    step = int(np.clip(radius / 4, 1, 4))
    window = _window_around(hair_mask, round(1.5 * radius) + 2 * step, step)
    hair, face = hair_mask[window], face_mask[window]
    repaint = np.zeros(hair_mask.shape, bool)
    if hair.size:
        full = hair.shape[1], hair.shape[0]
        size = max(1, full[0] // step), max(1, full[1] // step)
        grown, core = _grown(_resized(hair, size, 1), _resized(face, size, 128), radius / step, _cut(window, hair_mask))
        np.greater(_resized(grown, full, 128), _resized(core, full, 128), out=repaint[window])
        repaint[window] |= hair
    if config.hide_forehead or config.hide_beside_jaw:
        head = _Head.measure(face_mask, height, box)
        if head is not None and hair_mask.any():
            _hide(repaint, hair_mask, face_mask, head, config)
    return repaint


def _window_around(mask: np.ndarray, margin: int, step: int) -> tuple[slice, slice]:
    """Rows and columns of the box around a mask and a margin, in whole steps; nothing where the mask is empty."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    if not width:
        return slice(0), slice(0)
    left, top = max(0, x - margin) // step * step, max(0, y - margin) // step * step
    right, bottom = -(-(x + width + margin) // step) * step, -(-(y + height + margin) // step) * step
    return slice(top, min(bottom, mask.shape[0])), slice(left, min(right, mask.shape[1]))


def _cut(window: tuple[slice, slice], image: np.ndarray) -> tuple[bool, bool, bool, bool]:
    """Does the image go on beyond the window's top, bottom, left and right?"""
    rows, columns = window
    return rows.start > 0, rows.stop < image.shape[0], columns.start > 0, columns.stop < image.shape[1]


def _grown(
    hair: np.ndarray, face: np.ndarray, radius: float, cut: tuple[bool, bool, bool, bool]
) -> tuple[np.ndarray, np.ndarray]:
    """The hair mask grown, its small holes closed; and the face's core, which is not repainted."""
    distance = _distance_to(hair)
    core = _open(face & (distance > 0.4 * radius), radius / 3)
    return _fill_holes(distance <= radius, core, radius, cut), core


def _resized(mask: np.ndarray, size: tuple[int, int], threshold: int) -> np.ndarray:
    """A mask at another (width, height): set where at least `threshold` / 255 of a pixel is covered."""
    if mask.shape == size[::-1]:
        return mask
    shrinks = size[0] < mask.shape[1]
    values = cv2.resize(
        mask.view(np.uint8) * np.uint8(255), size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return values >= threshold


@dataclass(frozen=True)
class _Head:
    """Rows and columns of a face, by its box.

    Without a box they are estimated from the mask, which is less sure where hair covers half of the face: the widest
    row is at the ears or cheekbones, the chin is where the width has dropped to the neck's, and the brows stand
    `BROWS_ABOVE_CHIN` above it.
    """

    top: int
    brow: int
    chin: int
    left: int
    right: int
    height: float

    @classmethod
    def measure(cls, face_mask: np.ndarray, height: float, box: np.ndarray | None) -> _Head | None:
        widths = np.count_nonzero(face_mask, axis=1)
        rows = np.flatnonzero(widths)
        if rows.size < 8:
            return None
        if box is not None:
            top, chin = max(0, round(float(box[1]))), max(0, round(float(box[3])))
            columns = np.flatnonzero(face_mask[: chin + 1].any(axis=0))
            if columns.size:
                tall = float(box[3] - box[1])
                brow = max(0, round(float(box[1]) + BROW * tall))
                return cls(top, brow, chin, int(columns[0]), int(columns[-1]), tall)
        width = 0.8 * height
        widest = int(np.argmax(np.convolve(widths, np.ones(5), mode="same")))
        narrow = np.flatnonzero(widths[widest:] < 0.6 * width)
        chin = min(widest + int(narrow[0]) if narrow.size else int(rows[-1]), widest + round(0.7 * height))
        columns = np.flatnonzero(face_mask[: chin + 1].any(axis=0))
        brow = max(0, round(chin - BROWS_ABOVE_CHIN * height))
        return cls(int(rows[0]), brow, chin, int(columns[0]), int(columns[-1]), height)


def _hide(repaint: np.ndarray, hair: np.ndarray, face: np.ndarray, head: _Head, config: BaldConfig) -> None:
    """Add the forehead above the brows, and the columns beside the jaw, to a repaint mask."""
    if config.hide_forehead:
        repaint[: head.brow] |= face[: head.brow]
    if config.hide_beside_jaw:
        middle = round((head.brow + head.chin) / 2)
        lowest = int(np.flatnonzero(hair.any(axis=1))[-1])
        bottom = max(lowest, round(head.chin + 0.6 * head.height)) + 1
        reach = round(0.45 * head.height)
        columns = slice(max(0, head.left - reach), head.left), slice(head.right + 1, head.right + 1 + reach)
        for side in columns:
            repaint[middle:bottom, side] = True


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


def _fill_holes(grown: np.ndarray, core: np.ndarray, radius: float, cut: tuple[bool, bool, bool, bool]) -> np.ndarray:
    """Fill holes that hold no face core and are smaller than a disc of three radii.

    What touches a side beyond which the image goes on, as `_cut` says, is no hole.
    """
    count, parts, statistics, _ = cv2.connectedComponentsWithStats((~grown).view(np.uint8), connectivity=4)
    small = statistics[:, cv2.CC_STAT_AREA] < np.pi * (3 * radius) ** 2
    small[0] = False
    for side, goes_on in zip((parts[0], parts[-1], parts[:, 0], parts[:, -1]), cut, strict=True):
        if goes_on:
            small[side] = False
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
    result = np.ascontiguousarray(image).copy()
    if not hole.any():
        return result
    if config.method == "gray" or hole.all():
        result[hole] = GRAY
        return result
    hole = np.ascontiguousarray(hole)
    if config.method == "gaussian_blur":
        window, filled = _masked_blur(image, hole)
    else:
        flag = cv2.INPAINT_TELEA if config.method == "telea" else cv2.INPAINT_NS
        window, filled = _inpaint(image, hole, flag, config.inpaint_scale)
    cv2.copyTo(filled, hole[window].view(np.uint8), result[window])
    return result


_Filled = tuple[tuple[slice, slice], np.ndarray]
"""Rows and columns of a window, and an image that fills the holes in it."""


def _inpaint(image: np.ndarray, hole: np.ndarray, flag: int, scale: float) -> _Filled:
    """Classical inpainting at `scale`, in a window around the hole, enlarged smoothly."""
    if min(image.shape[:2]) * scale < MIN_INPAINT_SIDE:
        return _masked_blur(image, hole)
    radius = max(1, round(INPAINT_RADIUS * scale))
    return _in_window(image, hole, 32, scale, lambda small, gap: cv2.inpaint(small, gap, radius, flag))


def _masked_blur(image: np.ndarray, hole: np.ndarray) -> _Filled:
    """Normalised convolution: blur(image * known) / blur(known), narrow kernels where they reach, wide ones beyond.

    The Gaussians, each twice as wide as the one before, are the levels of a pyramid, and each level trusts the next
    one as much as a hundredth of a known pixel: so the fill is smooth, follows the nearest colours, and is defined in
    a hole of any size. (Gortler et al., The Lumigraph, 1996, section 3.4: pull-push.)
    """

    def blur(small: np.ndarray, gap: np.ndarray) -> np.ndarray:
        known = (gap == 0).astype(np.float32)
        colors, weights = [small.astype(np.float32) * known[..., None]], [known]
        while max(weights[-1].shape) > 1:
            colors.append(cv2.pyrDown(colors[-1], borderType=cv2.BORDER_REFLECT_101))
            weights.append(cv2.pyrDown(weights[-1], borderType=cv2.BORDER_REFLECT_101))
        filled = colors.pop() / max(float(weights.pop().max()), 1e-12)
        filled = filled.reshape(1, 1, 3)
        while colors:
            color, weight = colors.pop(), weights.pop()[..., None]
            coarse = cv2.resize(filled, color.shape[1::-1], interpolation=cv2.INTER_LINEAR)
            filled = (color + BLUR_TRUST * coarse) / (weight + BLUR_TRUST)
        return np.clip(filled, 0, 255).astype(np.uint8)

    return _in_window(image, hole, 64, 1 / BLUR_SCALE, blur)


def _in_window(
    image: np.ndarray,
    hole: np.ndarray,
    margin: int,
    scale: float,
    method: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> _Filled:
    """Run a filling method on a smaller copy of the window around the hole.

    The copy's pixels are means over known pixels only, so that nothing of the hole leaks into them; one of which less
    than half is known counts as part of the hole. The window's corners are multiples of 16 pixels, so that a small
    pixel covers whole ones.
    """
    window = _window_around(hole, margin, 16)
    part = image[window]
    known = np.uint8(255) * (np.uint8(1) - hole[window].view(np.uint8))
    size = max(1, round(known.shape[1] * scale)), max(1, round(known.shape[0] * scale))
    weight = cv2.resize(known, size, interpolation=cv2.INTER_AREA)
    small = cv2.resize(cv2.copyTo(part, known), size, interpolation=cv2.INTER_AREA)
    partly = (weight >= 128) & (weight < 255)
    share = weight[partly].astype(np.float32)[:, None] / 255
    small[partly] = np.clip(np.round(small[partly] / share), 0, 255).astype(np.uint8)
    gap = (weight < 128).view(np.uint8)
    if gap.all():  # too little is known at this size to start from
        small[:], gap[:] = cv2.mean(part, mask=known)[:3], 0
    small[gap > 0] = 0
    filled = method(small, gap) if gap.any() else small
    return window, cv2.resize(filled, known.shape[::-1], interpolation=cv2.INTER_LINEAR)
