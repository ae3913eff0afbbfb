"""The palette: what colour hair is, from roots to tips, and nothing else."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hair_pipeline.processing.palette import PALETTE_DIM, palette


@given(
    image=arrays.arrays(np.uint8, (12, 9, 3)),
    hair=arrays.arrays(bool, (12, 9)),
    other=arrays.arrays(np.uint8, (12, 9, 3)),
)
def test_it_is_finite_small_and_blind_outside_the_hair(image: np.ndarray, hair: np.ndarray, other: np.ndarray) -> None:
    found = palette(image, hair)
    assert found.shape == (PALETTE_DIM,)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 2.3  # CIELAB of sRGB: L 0 to 100, a and b within -108 to 99
    assert np.array_equal(found, palette(np.where(hair[..., None], image, other), hair))


@given(rgb=st.tuples(*[st.integers(0, 255)] * 3))
def test_one_colour_is_the_same_everywhere(rgb: tuple[int, int, int]) -> None:
    image = np.full((9, 5, 3), rgb, np.uint8)
    thirds = palette(image, np.ones((9, 5), bool)).reshape(3, 3)
    assert np.allclose(thirds, thirds[0], atol=1e-5)
    lab = cv2.cvtColor(image[:1, :1].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0, 0]
    assert thirds[0] * 50 + [50, 0, 0] == pytest.approx(lab, abs=1e-3)


def test_ombre_is_darker_at_the_roots_and_no_hair_is_zero() -> None:
    image = np.zeros((30, 4, 3), np.uint8)
    image[20:] = 230
    hair = np.ones((30, 4), bool)
    roots, lengths, ends = palette(image, hair).reshape(3, 3)[:, 0]
    assert roots == pytest.approx(-1)
    assert lengths == pytest.approx(-1)
    assert ends > 0.7
    assert not palette(image, np.zeros((30, 4), bool)).any()
    one = np.zeros((30, 4), bool)
    one[25, 1] = True
    assert np.allclose(palette(image, one).reshape(3, 3)[:, 0], ends)  # a single pixel is all three
