"""Pictures of a shard for people: a contact sheet of some of its images, and every step of the work on one of them.

Belongs here: what is shown. Does not belong here: layout and encoding (`previews`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np

from hair_pipeline.processing.bald import make_bald
from hair_pipeline.processing.hair_only import make_hair_only
from hair_pipeline.processing.patches import ZONES, cut
from hair_pipeline.processing.previews import TILE, contact_sheet, thumbnail
from hair_pipeline.processing.work import Picture
from hair_pipeline.profile import ProcessingConfig

log = logging.getLogger(__name__)

IMAGES = 12
"""Images on a contact sheet."""
STEP_SIDE = 200
_PATCH_TILE = 64
_HAIR, _FACE, _REPAINT = (230, 60, 60), (60, 140, 230), (250, 210, 40)
_ZONE_COLORS = dict(zip(ZONES, ((250, 210, 40), (80, 220, 120), (80, 170, 250)), strict=True))


def draw(
    asset: str,
    pictures: Sequence[Picture],
    product: Callable[[str], np.ndarray | None],
    shown: int,
    config: ProcessingConfig,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """A contact sheet, and the steps of one image left to right. An image that cannot be drawn any more is left out.

    Args:
        asset: whose. pictures: some of its images. shown: from which on the first that can be drawn shows the steps.
        product: image id -> what was made of it: its image (H, W, 3 or 4) uint8, or a patch; None without any.
        config: how they were made.

    Returns:
        (H, W, 3) uint8 each; None without anything to show.
    """
    tiles: list[np.ndarray] = []
    steps: list[np.ndarray] = []
    for number, picture in enumerate(pictures):
        loaded = Picture(picture.row, picture.roots, picture.size)  # dropped again: raw photos are large
        try:
            tiles += _tiles(asset, loaded, product(picture.row.image_id))
            if number >= shown and not steps:
                steps = [_step(image) for image in _STEPS[asset](loaded, config)]
        except Exception as error:  # a picture to look at is no reason to fail a shard, whatever became of its files
            log.warning("%s is not shown: %s", picture.row.image_id, error)
    return contact_sheet(tiles), contact_sheet(steps, columns=len(steps))


def _tiles(asset: str, picture: Picture, product: np.ndarray | None) -> list[np.ndarray]:
    """What the contact sheet shows of one image."""
    if product is None:
        return []
    before = [thumbnail(picture.sample.image)] if asset == "bald_images" else []
    return [*before, thumbnail(product, _PATCH_TILE if asset == "hair_patches" else TILE)]


def _bald_steps(picture: Picture, config: ProcessingConfig) -> list[np.ndarray]:
    """Photo, hair and face mask, repaint mask, bald image."""
    sample = picture.sample
    masks = sample.hair_mask, sample.face_mask
    bald, repaint = make_bald(sample.image, *masks, config.bald, box=sample.box, window=sample.window)
    marked = tint(tint(sample.image, sample.face_mask, _FACE), sample.hair_mask, _HAIR)
    return [sample.image, marked, tint(sample.image, repaint, _REPAINT), bald]


def _hair_only_steps(picture: Picture, config: ProcessingConfig) -> list[np.ndarray]:
    """Photo, hair mask, the hair alone."""
    sample = picture.sample
    alone = make_hair_only(sample.image, sample.hair_mask, config.hair_only)
    return [sample.image, tint(sample.image, sample.hair_mask, _HAIR), alone]


def _patch_steps(picture: Picture, config: ProcessingConfig) -> list[np.ndarray]:
    """Photo with the windows in the colour of their zone, then a few patches."""
    photo = picture.largest
    found = cut(photo.image, photo.hair_mask & ~photo.blurred, picture.row.image_id, config.patches)
    marked = photo.image.copy()
    thickness = max(1, round(max(marked.shape) / 200))
    for patch in found.patches:
        corner = patch.x + patch.size - 1, patch.y + patch.size - 1
        cv2.rectangle(marked, (patch.x, patch.y), corner, _ZONE_COLORS[patch.zone], thickness)
    return [marked, *[patch.image for patch in found.patches[:5]]]


def tint(image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """An image (H, W, 3) uint8 with a mask (H, W) bool laid over it in a colour."""
    laid = image.copy()
    laid[mask] = (0.45 * image[mask] + 0.55 * np.array(color)).astype(np.uint8)
    return laid


def _step(image: np.ndarray) -> np.ndarray:
    scale = STEP_SIDE / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    small = thumbnail(image, size)
    bottom, right = STEP_SIDE - size[1], STEP_SIDE - size[0]
    return cv2.copyMakeBorder(small, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(255, 255, 255))


_STEPS: Mapping[str, Callable[[Picture, ProcessingConfig], list[np.ndarray]]] = {
    "bald_images": _bald_steps,
    "hair_only_images": _hair_only_steps,
    "hair_patches": _patch_steps,
}
