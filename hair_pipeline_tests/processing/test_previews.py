"""Previews: never above 20 KB, every tile in its place."""

import numpy as np
import pytest

from hair_pipeline.files import decode_image
from hair_pipeline.processing.previews import MAX_BYTES, contact_sheet, encode_preview, thumbnail


@pytest.mark.parametrize("side", [40, 600, 1500])
def test_even_noise_stays_small(side: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    data = encode_preview(image)
    assert len(data) <= MAX_BYTES
    assert decode_image(data).shape[0] <= side


def test_contact_sheet() -> None:
    tiles = [np.full((4, 4, 3), number, np.uint8) for number in range(5)]
    sheet = contact_sheet(tiles, columns=3)
    assert sheet is not None
    assert sheet.shape == (8, 12, 3)
    assert sheet[0, ::4, 0].tolist() == [0, 1, 2]
    assert sheet[4, ::4, 0].tolist() == [3, 4, 255]
    assert contact_sheet([]) is None


def test_transparent_parts_show_the_backdrop() -> None:
    image = np.zeros((16, 16, 4), np.uint8)
    image[:, 8:] = (200, 10, 10, 255)
    small = thumbnail(image, 8)
    assert small[0, 0].tolist() == [235, 235, 240]
    assert small[0, 7].tolist() == [200, 10, 10]
