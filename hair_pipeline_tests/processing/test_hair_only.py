"""Hair-only images: nothing of the photo is left under the transparent part, also on disk."""

import io

import cv2
import numpy as np
from hypothesis import given
from hypothesis.extra.numpy import arrays
from PIL import Image

from hair_pipeline.files import decode_image, encode_image
from hair_pipeline.processing.hair_only import make_hair_only
from hair_pipeline.profile import HairOnlyConfig
from hair_pipeline_tests.inputs.tiny_inputs import draw_person


@given(arrays(np.uint8, (9, 11, 3)), arrays(bool, (9, 11)))
def test_rgb_is_zero_under_alpha_zero(image: np.ndarray, mask: np.ndarray) -> None:
    cut = make_hair_only(image, mask)
    assert cut.shape == (9, 11, 4)
    np.testing.assert_array_equal(cut[..., 3], np.where(mask, 255, 0))
    np.testing.assert_array_equal(cut[mask][:, :3], image[mask])
    assert not cut[~mask].any()
    for extension in (".webp", ".png"):
        data = encode_image(cut, extension)
        np.testing.assert_array_equal(decode_image(data, alpha=True), cut)
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(data)).convert("RGBA")), cut)


def test_opencv_reads_the_webp_as_others_do() -> None:
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    cut = make_hair_only(image, np.eye(32, dtype=bool))
    data = np.frombuffer(encode_image(cut, ".webp"), np.uint8)
    read = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(cv2.cvtColor(read, cv2.COLOR_BGRA2RGBA), cut)


def test_a_soft_alpha_stays_near_the_masks_border() -> None:
    picture = draw_person(0)
    hard = make_hair_only(picture.photo, picture.hair_mask)
    soft = make_hair_only(picture.photo, picture.hair_mask, HairOnlyConfig(soft_alpha=True))
    assert not soft[soft[..., 3] == 0].any()
    assert len(np.unique(soft[..., 3])) > 20
    changed = (soft[..., 3] != hard[..., 3]).astype(np.uint8)
    border = cv2.morphologyEx(picture.hair_mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((15, 15), np.uint8))
    assert not changed[border == 0].any()
