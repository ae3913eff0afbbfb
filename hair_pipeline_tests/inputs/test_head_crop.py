"""The square around the head: where it lies, and pictures of the whole photo seen through it."""

import cv2
import numpy as np
import pytest

from hair_pipeline.inputs.geometry import letterbox
from hair_pipeline.inputs.head_crop import Crop, Framing, cut, cut_photo, head_crop
from hair_pipeline.inputs.samples import Photo, to_sample


def masks(width: int, height: int, x: int, y: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    hair = np.zeros((height, width), bool)
    hair[y : y + side, x : x + side] = True
    return hair, np.zeros_like(hair)


def test_a_small_head_is_cut_out_of_a_large_photo() -> None:
    assert head_crop(*masks(3000, 4000, 1000, 500, 400)) == Crop(900, 400, 600, 600)
    assert head_crop(*masks(3000, 4000, 0, 500, 400)) == Crop(0, 400, 600, 600)


@pytest.mark.parametrize(("head", "side"), [(270, 405), (274, 512), (500, 512)])
def test_a_photo_framed_like_those_of_training_stays_whole(head: int, side: int) -> None:
    found = head_crop(*masks(512, 512, 6, 6, head))
    assert found.side == side
    assert (found.x, found.y) == (0, 0)


@pytest.mark.parametrize(("width", "height"), [(301, 400), (400, 301), (300, 300)])
def test_a_photo_that_stays_whole_is_the_square_that_training_sees(width: int, height: int) -> None:
    hair, face = masks(width, height, 20, 30, 230)
    face[60:120, 60:120], hair[60:120, 60:120] = True, False
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    photo = Photo("x", "p", image, hair, face, face, np.array([60, 60, 120, 120], np.float32), hair)
    served, trained = to_sample(cut_photo(photo, head_crop(hair, face)), 128), to_sample(photo, 128)
    assert served.window == trained.window
    assert (served.window is None) == (width == height)
    for name in ("image", "hair_mask", "face_mask", "box"):
        np.testing.assert_array_equal(getattr(served, name), getattr(trained, name), name)


def test_a_square_wider_than_the_photo_shows_its_whole_width() -> None:
    hair, face = masks(120, 400, 10, 100, 100)
    assert head_crop(hair, face) == Crop(0, 75, 120, 150)
    assert head_crop(hair.T, face.T) == Crop(75, 0, 150, 120)


FRAMING = Framing(120, 160, 6, Crop(30, 20, 64, 64))


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
