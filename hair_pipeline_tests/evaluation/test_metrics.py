"""Metrics on constructed pictures."""

import cv2
import numpy as np
import pytest
import torch

from hair_pipeline.evaluation.metrics import distribution, learned, seam
from hair_pipeline.evaluation.regions import boundary_ring, bounding_square, masked_crop
from hair_pipeline.evaluation.statistics import Estimate
from hair_pipeline.processing.bald import make_bald
from hair_pipeline.processing.compositing import paste_back
from hair_pipeline.profile import BaldConfig
from hair_pipeline_tests.inputs.tiny_inputs import draw_person


@pytest.fixture(scope="module", params=[0, 3])
def scene(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Photo, hair mask, face mask, bald image, repaint mask."""
    person = draw_person(request.param)
    bald, repaint = make_bald(person.photo, person.hair_mask, person.face_mask, BaldConfig())
    return person.photo, person.hair_mask, person.face_mask, bald, repaint


def rim(mask: np.ndarray, inside: int) -> np.ndarray:
    kernel = np.ones((3, 3), np.uint8)
    return mask & (cv2.erode(mask.astype(np.uint8), kernel, iterations=inside) == 0)


def test_halo_is_zero_on_the_photo_and_small_on_a_copy(scene) -> None:  # type: ignore[no-untyped-def]
    photo, _, _, _, repaint = scene
    assert seam.halo(photo, photo, repaint) == 0
    copy = cv2.imdecode(cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 92])[1], cv2.IMREAD_COLOR)
    assert abs(seam.halo(photo, copy, repaint)) < 1  # less than half of what can be seen


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (90, 60, 50)])
def test_halo_is_high_on_a_pasted_rim(scene, colour: tuple[int, int, int]) -> None:  # type: ignore[no-untyped-def]
    photo, _, _, _, repaint = scene
    spoilt = photo.copy()
    spoilt[rim(repaint, 4)] = colour
    assert seam.halo(photo, spoilt, repaint) > 2.3


def test_halo_sees_a_region_pasted_in_another_light(scene) -> None:  # type: ignore[no-untyped-def]
    photo, _, _, _, repaint = scene
    brighter = np.clip(photo.astype(int) + 30, 0, 255).astype(np.uint8)
    hard, soft = (paste_back(photo, brighter, repaint, px) for px in (0, 40))
    assert seam.halo(photo, hard, repaint) > 2.3
    assert seam.halo(photo, soft, repaint) < seam.halo(photo, hard, repaint)


def test_a_blurred_rim_is_less_sharp(scene) -> None:  # type: ignore[no-untyped-def]
    photo, hair, _, _, repaint = scene
    blurred = paste_back(photo, cv2.GaussianBlur(photo, (0, 0), 4), repaint, 0)
    assert seam.rim_sharpness(photo, photo, repaint, hair) == 0
    assert seam.rim_sharpness(photo, blurred, repaint, hair) < -0.5


def test_untouched_bytes_after_paste_back_and_after_a_leak(scene) -> None:  # type: ignore[no-untyped-def]
    photo, _, _, bald, repaint = scene
    pasted = paste_back(photo, bald, repaint, 8)
    assert seam.untouched_share_changed(photo, pasted, repaint) == 0
    y, x = np.argwhere(~repaint)[0]
    pasted[y, x, 0] ^= 1
    assert seam.untouched_share_changed(photo, pasted, repaint) == pytest.approx(1 / (3 * (~repaint).sum()))
    assert np.isnan(seam.untouched_share_changed(photo, pasted, np.ones_like(repaint)))


def test_the_ring_lies_where_hair_meets_skin(scene) -> None:  # type: ignore[no-untyped-def]
    _, hair, face, _, _ = scene
    ring = boundary_ring(hair, face)
    assert (ring & hair).any()
    assert (ring & face).any()
    assert ring.sum() < hair.sum()
    assert np.flatnonzero(ring.any(1))[0] > np.flatnonzero(hair.any(1))[0]  # not the crown, which meets the background
    assert not boundary_ring(np.zeros_like(hair), face).any()


def test_crops_stay_inside_and_hide_the_rest() -> None:
    mask = np.zeros((100, 100), bool)
    mask[0:10, 90:100] = True
    x, y, side = bounding_square(mask)
    assert 0 <= x <= 100 - side
    assert 0 <= y <= 100 - side
    image = np.full((100, 100, 3), 200, np.uint8)
    inside = masked_crop(image, mask, 32)
    image[~mask] = 7
    assert np.array_equal(inside, masked_crop(image, mask, 32))
    with pytest.raises(ValueError, match="empty"):
        bounding_square(np.zeros((4, 4), bool))


def test_frechet_distance_equals_torch_fidelity_in_full_space_and_kid_is_about_zero() -> None:
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(20, 96)), rng.normal(0.3, 1.1, size=(20, 96))
    full = [distribution.fid_features_to_statistics(torch.from_numpy(f)) for f in (real, made)]
    expected = distribution.fid_statistics_to_metric(*full, verbose=False)["frechet_inception_distance"]
    assert distribution.frechet_distance(real, made) == pytest.approx(expected, rel=1e-6)
    assert distribution.frechet_distance(real, real) == pytest.approx(0, abs=1e-6)
    same = [distribution.kernel_distance(rng.normal(size=(60, 16)), rng.normal(size=(60, 16))) for _ in range(20)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(20) + 1e-3


def test_set_distances_are_null_with_too_few_images_and_carry_n() -> None:
    rng = np.random.default_rng(0)
    few = distribution.set_distance(distribution.frechet_distance, np.ones((3, 4)), np.ones((3, 4)), list("abc"))
    assert few.value is None
    assert "3 images" in str(few.reason)
    features, people = rng.normal(size=(24, 8)), [str(i // 3) for i in range(24)]
    estimate = distribution.set_distance(distribution.kernel_distance, features, features + 1, people)
    assert (estimate.n, estimate.people) == (24, 8)
    assert estimate.ci_low is not None
    assert estimate.ci_low < estimate.value < estimate.ci_high  # type: ignore[operator]
    bad = features.copy()
    bad[0, 0] = np.nan
    broken = distribution.set_distance(distribution.kernel_distance, features, bad, people)
    assert broken == Estimate(None, reason=broken.reason)


class _Eye(torch.nn.Module):
    """A recogniser that sees the mean colour of the box, or nothing."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.broken = broken

    def embed(self, images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        rows = []
        for image, box in zip(images, boxes.long().tolist(), strict=True):
            x1, y1, x2, y2 = box
            rows.append(image[:, y1:y2, x1:x2].mean((1, 2)) + (torch.nan if self.broken else 0.0))
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def test_identity_is_one_with_itself_lower_for_another_and_nan_stays_nan() -> None:
    cpu = torch.device("cpu")
    a, b = draw_person(0), draw_person(1)
    box = np.array(a.box, np.float32)
    original, other = learned.face_embeddings(_Eye(), [a.photo, b.photo], [box, box], cpu)
    assert learned.identity_similarity(original[None], original[None])[0] == pytest.approx(1)
    assert learned.identity_similarity(original[None], other[None])[0] < 0.9999
    broken = learned.face_embeddings(_Eye(broken=True), [a.photo], [box], cpu)
    assert np.isnan(learned.identity_similarity(original[None], broken)).all()


def test_hair_lpips_ignores_everything_outside_the_hair() -> None:
    class Squared:
        def distance(self, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            assert mask is not None
            return ((x - y) ** 2 * mask).sum((1, 2, 3))

    cpu = torch.device("cpu")
    person = draw_person(0)
    outside = np.where(person.hair_mask[..., None], person.photo, np.uint8(0))
    inside = np.where(person.hair_mask[..., None], np.uint8(0), person.photo)
    values = learned.hair_lpips(
        Squared(), [person.photo] * 3, [outside, inside, person.photo], [person.hair_mask] * 3, cpu
    )
    assert values[0] == 0
    assert values[1] > 0
    nothing = learned.hair_lpips(Squared(), [person.photo], [inside], [np.zeros_like(person.hair_mask)], cpu)
    assert np.isnan(nothing).all()
