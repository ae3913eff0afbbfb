"""Pasting back: byte-identical outside the mask, the generated image inside, nothing new between."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hair_pipeline.processing.compositing import feather, paste_back

IMAGES = arrays(np.uint8, (14, 12, 3))
MASKS = arrays(bool, (14, 12))


@given(MASKS, st.floats(0, 9))
def test_the_feather_stays_inside_the_mask(mask: np.ndarray, px: float) -> None:
    alpha = feather(mask, px)
    assert alpha.dtype == np.float32
    assert (alpha[~mask] == 0).all()
    assert (alpha[mask] > 0).all()
    assert (alpha <= 1).all()


@given(IMAGES, IMAGES, MASKS, st.floats(0, 9))
def test_outside_the_mask_nothing_changes(
    photo: np.ndarray, generated: np.ndarray, mask: np.ndarray, px: float
) -> None:
    before = photo.copy()
    result = paste_back(photo, generated, mask, px)
    np.testing.assert_array_equal(photo, before)
    np.testing.assert_array_equal(result[~mask], photo[~mask])
    assert (result >= np.minimum(photo, generated)).all()
    assert (result <= np.maximum(photo, generated)).all()


def test_deep_inside_the_generated_image_stands_alone() -> None:
    rng = np.random.default_rng(0)
    photo, generated = rng.integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[10:50, 10:50] = True
    result = paste_back(photo, generated, mask, 5)
    np.testing.assert_array_equal(result[16:44, 16:44], generated[16:44, 16:44])
    assert (result[10:50, 10] != generated[10:50, 10]).any()


def test_the_ramp_rises_from_the_border_but_not_at_the_images_edge() -> None:
    mask = np.zeros((20, 40), bool)
    mask[:, :30] = True
    alpha = feather(mask, 4)
    assert (np.diff(alpha[10, 20:31]) <= 0).all()
    assert (alpha[:, :20] == 1).all()
    assert (feather(mask, 0) == mask).all()
