"""Hair-only images: nothing of the photo is left under the transparent part, also on disk."""

import cv2
import numpy as np
from hypothesis import given
from hypothesis.extra.numpy import arrays

from hair_pipeline.files import decode_image, encode_image
from hair_pipeline.processing.hair_only import make_hair_only


@given(arrays(np.uint8, (9, 11, 3)), arrays(bool, (9, 11)))
def test_rgb_is_zero_under_alpha_zero(image: np.ndarray, mask: np.ndarray) -> None:
    cut = make_hair_only(image, mask)
    assert cut.shape == (9, 11, 4)
    np.testing.assert_array_equal(cut[..., 3], np.where(mask, 255, 0))
    np.testing.assert_array_equal(cut[mask][:, :3], image[mask])
    assert not cut[~mask].any()
    for extension in (".webp", ".png"):
        np.testing.assert_array_equal(decode_image(encode_image(cut, extension), alpha=True), cut)


def test_opencv_reads_the_webp_as_others_do() -> None:
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    cut = make_hair_only(image, np.eye(32, dtype=bool))
    data = np.frombuffer(encode_image(cut, ".webp"), np.uint8)
    read = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(cv2.cvtColor(read, cv2.COLOR_BGRA2RGBA), cut)
