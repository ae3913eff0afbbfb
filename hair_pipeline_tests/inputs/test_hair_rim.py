from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hair_pipeline.inputs.hair_rim import BROW, REACH, with_rim
from hair_pipeline.processing.bald import make_bald
from hair_pipeline.profile import BaldConfig

SKIN, HAIR, WALL = (214, 170, 140), (50, 36, 30), (150, 160, 170)
BOX = np.array([80, 70, 176, 200], np.float32)
BROW_ROWS = slice(98, 103)


def portrait(hair_color: tuple[int, int, int] = HAIR) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A face with brows in the colour of the hair, lit from the left, under a fringe: photo, hair and face masks."""
    hair, face = np.zeros((2, 256, 256), np.uint8)
    cv2.ellipse(hair, (128, 110), (70, 90), 0, 0, 360, 1, -1)
    cv2.ellipse(face, (128, 135), (48, 66), 0, 0, 360, 1, -1)
    face[:88] = 0  # the fringe ends here, above the brows
    image = np.full((256, 256, 3), WALL, np.uint8)
    image[hair > 0] = hair_color
    image[face > 0] = SKIN
    image[BROW_ROWS, 95:120] = image[BROW_ROWS, 136:161] = hair_color
    light = np.linspace(1.15, 0.7, 256)[None, :, None]
    noise = np.random.default_rng(0).normal(0, 4, image.shape)
    lit = np.clip(image * light + noise, 0, 255).astype(np.uint8)
    return lit, (hair > 0) & (face == 0), face > 0


def cut_tight(hair: np.ndarray, face: np.ndarray, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks as of a parser that takes the hair's rim, where it meets the face, for skin."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    lost = hair & (cv2.dilate(face.astype(np.uint8), disc) > 0)
    return hair & ~lost, face | lost


def test_leaves_masks_that_fit_alone():
    image, hair, face = portrait()
    completed, rest = with_rim(image, hair, face, BOX)
    assert np.array_equal(completed, hair)
    assert np.array_equal(rest, face)


@pytest.mark.parametrize("pixels", [2, 3, 4])
def test_finds_the_rim_of_a_mask_cut_tight(pixels: int):
    image, hair, face = portrait()
    tight, skin = cut_tight(hair, face, pixels)
    completed, rest = with_rim(image, tight, skin, BOX)
    forehead = np.arange(256)[:, None] < BOX[1] + BROW * (BOX[3] - BOX[1])
    lost = hair & ~tight & forehead
    assert (completed & lost).sum() > 0.9 * lost.sum()
    assert (completed & face).sum() < 0.02 * face.sum()
    assert not (completed & rest).any()
    assert np.array_equal(completed | rest, tight | skin)


def test_a_bald_head_is_not_filled_with_the_rim_s_colour():
    image, hair, face = portrait()
    tight, skin = cut_tight(hair, face, 4)
    crown = np.zeros_like(hair)
    crown[70:82, 100:156] = True

    def to_skin(masks: tuple[np.ndarray, np.ndarray]) -> float:
        bald, _ = make_bald(image, *masks, BaldConfig(), box=BOX)
        return float(np.linalg.norm(bald[crown].mean(axis=0) - SKIN))

    assert to_skin((tight, skin)) > 80
    assert to_skin(with_rim(image, tight, skin, BOX)) < 40


def test_brows_under_a_fringe_stay():
    image, hair, face = portrait()
    below = face.copy()
    below[: BROW_ROWS.start] = False  # the fringe hangs down to the brows
    image[face & ~below] = HAIR
    tight, skin = cut_tight(hair | (face & ~below), below, 3)
    completed, _ = with_rim(image, tight, skin, BOX)
    assert not completed[BROW_ROWS, 95:161].any()


def test_a_beard_beside_the_hair_stays():
    image, hair, face = portrait()
    below = np.arange(256)[:, None] > BOX[1] + 0.7 * (BOX[3] - BOX[1])
    image[face & below] = HAIR
    tight, skin = cut_tight(hair, face, 3)
    completed, _ = with_rim(image, tight, skin, BOX)
    assert not (completed & face & below).any()


@pytest.mark.parametrize("far", [1e30, np.inf, -1e30])
def test_a_box_may_be_anywhere(far: float):
    image, hair, face = portrait()
    box = np.array([80, 70, far, far], np.float32)
    completed, rest = with_rim(image, *cut_tight(hair, face, 3), box)
    assert np.array_equal(completed | rest, hair | face)


def test_without_a_box_or_a_face_or_contrast_nothing_changes():
    image, hair, face = portrait()
    tight, skin = cut_tight(hair, face, 3)
    blond = portrait(hair_color=(200, 158, 130))[0]
    nothing = np.zeros_like(face)
    for changed in (
        with_rim(image, tight, skin, None),
        with_rim(image, tight, nothing, BOX),
        with_rim(blond, tight, skin, BOX),
    ):
        assert np.array_equal(changed[0], tight)
    assert np.array_equal(with_rim(image, nothing, skin, BOX)[1], skin)


@given(st.integers(0, 2**32 - 1), st.integers(20, 90))
def test_masks_stay_disjoint_and_the_rim_near(seed: int, side: int):
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (side, side, 3)).astype(np.uint8)
    blobs = cv2.resize(random.normal(size=(4, 4)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    hair, face = blobs > 0.2, blobs < -0.2
    box = np.sort(random.uniform(-10, side + 10, (2, 2)), axis=0).astype(np.float32).ravel()
    completed, rest = with_rim(image, hair, face, box)
    assert not (completed & rest).any()
    assert np.array_equal(completed | rest, hair | face)
    if (completed & ~hair).any():
        distance = cv2.distanceTransform((~hair).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        assert distance[completed & ~hair].max() <= max(1.0, REACH * (box[3] - box[1])) + 1
