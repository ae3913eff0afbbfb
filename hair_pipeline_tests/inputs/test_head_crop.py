"""The square around the head: where it lies, and pictures of the whole photo seen through it."""

import cv2
import numpy as np
import pytest

from hair_pipeline.inputs.geometry import letterbox
from hair_pipeline.inputs.head_crop import Crop, Framing, cut, head_crop


def masks(width: int, height: int, x: int, y: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    hair = np.zeros((height, width), bool)
    hair[y : y + side, x : x + side] = True
    return hair, np.zeros_like(hair)


def test_a_small_head_is_cut_out_of_a_large_photo() -> None:
    assert head_crop(*masks(3000, 4000, 1000, 500, 400)) == Crop(900, 400, 600)
    assert head_crop(*masks(3000, 4000, 0, 500, 400)) == Crop(0, 400, 600)


@pytest.mark.parametrize(("head", "side"), [(270, 405), (274, 512), (500, 512)])
def test_a_photo_framed_like_those_of_training_stays_whole(head: int, side: int) -> None:
    found = head_crop(*masks(512, 512, 6, 6, head))
    assert found.side == side
    assert (found.x, found.y) == (0, 0)


def test_of_a_photo_that_is_not_square_the_whole_is_its_letterbox() -> None:
    assert head_crop(*masks(300, 400, 20, 50, 240)) == Crop(-50, 0, 400)


FRAMING = Framing(120, 160, 6, Crop(30, 20, 64))


def test_pictures_of_the_whole_photo_are_cut_alike() -> None:
    photo = cv2.resize(np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8), (120, 160))
    expected = cut(photo, FRAMING.crop).astype(int)
    exact = {"upright": photo, "stored": np.rot90(photo)}
    for name, picture in exact.items():
        assert np.array_equal(FRAMING.cut(picture), expected), name
    similar = {
        "larger": cv2.resize(photo, (240, 320), interpolation=cv2.INTER_CUBIC),
        "letterbox": letterbox(120, 160, 320).image(photo),
    }
    for name, picture in similar.items():
        found = FRAMING.cut(picture)
        assert found is not None
        assert np.abs(found - expected).mean() < 2, name


def test_a_picture_of_another_framing_is_refused() -> None:
    assert FRAMING.cut(np.zeros((100, 120, 3), np.uint8)) is None
