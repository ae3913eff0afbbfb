"""The geometry: nothing is cropped, and points, boxes, masks and images find their way back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hair_pipeline.inputs.geometry import PADDING, letterbox

SIDES = st.integers(8, 5000)


@given(SIDES, SIDES, st.integers(16, 1024))
def test_the_whole_photo_fits(width: int, height: int, size: int) -> None:
    geometry = letterbox(width, height, size)
    inner_width, inner_height = geometry.inner
    assert max(inner_width, inner_height) == size
    assert 0 <= geometry.offset_x <= size - inner_width
    assert 0 <= geometry.offset_y <= size - inner_height


@given(SIDES, SIDES, st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_boxes_come_back(width: int, height: int, parts: list[float]) -> None:
    geometry = letterbox(width, height, 512)
    box = np.float32(parts) * np.float32([width, height, width, height])
    there = geometry.box(box)
    assert (there >= -0.01).all()
    assert (there <= 512.01).all()
    np.testing.assert_allclose(geometry.box_back(there), box, atol=0.01 * max(1, 1 / geometry.scale))


@pytest.mark.parametrize(("width", "height"), [(512, 512), (403, 302), (302, 403), (100, 60), (1024, 768)])
def test_images_and_masks_come_back(width: int, height: int) -> None:
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    photo = np.stack([columns / width, rows / height, (rows + columns) / (width + height)], 2) * 255
    photo = photo.astype(np.uint8)
    mask = (columns - width / 2) ** 2 + (rows - height / 2) ** 2 < (0.3 * min(width, height)) ** 2
    geometry = letterbox(width, height, 512)
    square, square_mask = geometry.image(photo), geometry.mask(mask)
    assert square.shape == (512, 512, 3)
    assert square_mask.shape == (512, 512)
    assert np.abs(geometry.image_back(square).astype(int) - photo).max() <= 6
    back = geometry.mask_back(square_mask)
    assert (back & mask).sum() / (back | mask).sum() > 0.97
    covered = geometry.mask(np.ones((height, width), bool))
    assert (square[~covered] == PADDING).all()
    assert covered.sum() == np.prod(geometry.inner)


def test_a_square_of_the_right_size_is_left_alone() -> None:
    photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    geometry = letterbox(64, 64, 64)
    mask = photo[..., 0] > 128
    assert geometry.image(photo) is photo
    assert geometry.mask(mask) is mask
