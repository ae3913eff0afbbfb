"""JPEGs that lost data and have their end marker are found out; no whole one is, however flat."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from hair_pipeline.inputs.k_hairstyle import Rejected, decode_small
from hair_pipeline.inputs.reasons import Reason

SIDE = 256
BLURRED = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8), (0, 0), 2)
NOISE = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
FLAT = {"black": (0, 0, 0), "white": (255, 255, 255), "libjpeg's gray": (128, 128, 128), "blue": (40, 90, 200)}
OPTIONS: list[dict[str, object]] = [
    {},
    {"optimize": True},
    {"progressive": True},
    {"quality": 20},
    {"quality": 100, "subsampling": 0},
    {"quality": 60, "subsampling": 0, "optimize": True},
    {"quality": 60, "restart_marker_rows": 1},
]


def encoded(image: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def lost(data: bytes) -> str:
    try:
        decode_small(data)
    except Rejected as error:
        return error.detail if error.reason == Reason.TRUNCATED_IMAGE else str(error)
    return ""


def fill(data: bytes, start: float, end: float) -> bytes:
    """Zeros in place of a part of the scan."""
    scan = data.index(b"\xff\xda") + 14
    first, last = (scan + round((len(data) - 2 - scan) * share) for share in (start, end))
    return data[:first] + bytes(last - first) + data[last:]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("color", FLAT)
def test_a_flat_picture_is_whole(color: str, options: dict[str, object]) -> None:
    flat = np.full((SIDE, SIDE, 3), FLAT[color], np.uint8)
    half = flat.copy()
    half[: SIDE // 2] = BLURRED[: SIDE // 2]
    for image in (flat, half, half[::-1], flat[..., 0], half[:37, :201]):
        assert lost(encoded(np.ascontiguousarray(image), **options)) == ""


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("image", [BLURRED, NOISE], ids=["blurred", "noise"])
def test_a_picture_of_anything_is_whole(image: np.ndarray, options: dict[str, object]) -> None:
    assert lost(encoded(image, **options)) == ""
    assert lost(encoded(image, **options) + bytes(5000)) == ""
    assert lost(encoded(image, exif=b"Exif\x00\x00" + bytes(3000), **options)) == ""


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"quality": 98, "subsampling": 0}])
@pytest.mark.parametrize("image", [BLURRED, NOISE], ids=["blurred", "noise"])
def test_half_of_the_data_before_the_end_marker(image: np.ndarray, options: dict[str, object]) -> None:
    data = encoded(image, **options)
    for share in (0.3, 0.5, 0.85):
        assert lost(data[: round(len(data) * share)].rstrip(b"\xff") + b"\xff\xd9") == "its data end before its pixels"
    assert lost(data[: len(data) // 2].rstrip(b"\xff") + b"\xff\xd9" + bytes(5000)) == "its data end before its pixels"


@pytest.mark.parametrize(("start", "end"), [(0.3, 1), (0.3, 0.4), (0.5, 0.9)])
@pytest.mark.parametrize("quality", [60, 92, 100])
def test_zeros_in_place_of_data(quality: int, start: float, end: float) -> None:
    assert lost(fill(encoded(BLURRED, quality=quality), start, end)) == "zeros stand in the place of data"


def test_gray_that_no_data_were_found_for_is_told_from_gray() -> None:
    flat = np.full((SIDE, SIDE, 3), 128, np.uint8)
    flat[: SIDE // 2] = BLURRED[: SIDE // 2]
    whole = encoded(flat, quality=90)
    cut = whole[: len(whole) * 4 // 5] + b"\xff\xd9"
    np.testing.assert_array_equal(decode_small(whole)[2][-8:], 128)
    assert lost(whole) == ""
    assert lost(cut) == "its data end before its pixels"
