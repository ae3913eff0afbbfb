"""Metrics on constructed pictures."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from hair_pipeline.evaluation import leakage
from hair_pipeline.evaluation.cases import Case
from hair_pipeline.evaluation.contenders import Drawing
from hair_pipeline.evaluation.judges import Judge, Judges
from hair_pipeline.evaluation.measure import Measurements
from hair_pipeline.evaluation.metrics import distribution, learned, pixels, seam
from hair_pipeline.evaluation.regions import boundary_ring, bounding_square, masked_crop, seam_places
from hair_pipeline.evaluation.results import summarise
from hair_pipeline.evaluation.statistics import Estimate
from hair_pipeline.inputs.samples import Sample
from hair_pipeline.processing.bald import make_bald
from hair_pipeline.processing.compositing import paste_back
from hair_pipeline.processing.leakage import Leakage, Score
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


@pytest.mark.parametrize(("images", "dim"), [(20, 96), (96, 96), (300, 96)])
def test_frechet_distance_equals_torch_fidelity(images: int, dim: int) -> None:
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(images, dim)), rng.normal(0.3, 1.1, size=(images, dim)) * rng.uniform(0.1, 2, dim)
    statistics = [fid_features_to_statistics(torch.from_numpy(features)) for features in (real, made)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    assert distribution.frechet_distance(real, made) == pytest.approx(expected, rel=1e-6)
    assert distribution.frechet_distance(real, real) == pytest.approx(0, abs=1e-6)


def test_kid_is_about_zero_for_equal_distributions() -> None:
    rng = np.random.default_rng(0)
    same = [distribution.kernel_distance(rng.normal(size=(60, 16)), rng.normal(size=(60, 16))) for _ in range(20)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(20) + 1e-3


@pytest.mark.parametrize("at_once", [5000, 40])
def test_pictures_that_resemble_their_photos_do_not_lower_kid(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "KID_ALL", at_once)
    monkeypatch.setattr(distribution, "KID_SUBSET", 40)
    rng = np.random.default_rng(0)
    images, people = 60, [str(i) for i in range(60)]
    for shift, equal in ((0.0, True), (0.5, False)):
        real, noise = rng.normal(size=(2, images, 64))
        alike = 0.9 * real + np.sqrt(1 - 0.9**2) * noise + shift  # of the same distribution where nothing is shifted
        estimate = distribution.set_distance(distribution.kernel_distance, real, alike, people).estimate()
        assert estimate.ci_low is not None
        assert estimate.ci_high is not None
        assert (estimate.ci_low <= 0 <= estimate.ci_high) == equal
        assert equal or estimate.ci_low > 0


def test_set_distances_are_null_with_too_few_images_and_carry_n() -> None:
    rng = np.random.default_rng(0)
    few = distribution.set_distance(
        distribution.frechet_distance, np.ones((3, 4)), np.ones((3, 4)), list("abc")
    ).estimate()
    assert few.value is None
    assert "3 images" in str(few.reason)
    features, people = rng.normal(size=(24, 8)), [str(i // 3) for i in range(24)]
    estimate = distribution.set_distance(distribution.kernel_distance, features, features + 1, people).estimate()
    assert (estimate.n, estimate.people) == (24, 8)
    assert estimate.ci_low is not None
    assert estimate.ci_low < estimate.value < estimate.ci_high  # type: ignore[operator]
    bad = features.copy()
    bad[0, 0] = np.nan
    broken = distribution.set_distance(distribution.kernel_distance, features, bad, people).estimate()
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
    assert np.isnan(learned.identity_similarity(original[None], np.zeros_like(original)[None])).all()


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


def test_ssim_is_the_published_one(scene) -> None:  # type: ignore[no-untyped-def]
    photo = scene[0]
    blurred = cv2.GaussianBlur(photo, (0, 0), 2)
    x, y = (image.astype(float) @ [0.299, 0.587, 0.114] for image in (photo, blurred))

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5, borderType=cv2.BORDER_REFLECT)

    variances = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
    first = (2 * mean(x) * mean(y) + 2.55**2) / (mean(x) ** 2 + mean(y) ** 2 + 2.55**2)
    expected = first * (2 * (mean(x * y) - mean(x) * mean(y)) + 7.65**2) / (variances + 7.65**2)
    assert np.abs(pixels.similarity_map(photo, blurred) - expected).max() < 5e-4


def test_psnr_and_ssim_look_at_their_region_only(scene) -> None:  # type: ignore[no-untyped-def]
    photo, hair, _, _, _ = scene
    noisy = photo.copy()
    noisy[hair] = np.clip(photo[hair].astype(int) + 10, 0, 255)
    assert pixels.psnr(photo, photo, hair) == pixels.PSNR_LIMIT
    assert pixels.psnr(photo, noisy, hair) == pytest.approx(20 * np.log10(255 / 10), abs=0.3)
    assert pixels.psnr(photo, noisy, ~hair) == pixels.PSNR_LIMIT
    assert pixels.ssim(pixels.similarity_map(photo, photo), hair) == pytest.approx(1)
    blurred = cv2.GaussianBlur(photo, (0, 0), 3)
    assert pixels.ssim(pixels.similarity_map(photo, blurred), hair) < 0.9
    assert np.isnan(pixels.psnr(photo, photo, np.zeros_like(hair)))
    assert np.isnan(pixels.ssim(pixels.similarity_map(photo, photo), np.zeros_like(hair)))


def a_transfer(config: BaldConfig) -> Case:
    samples = []
    for number in (0, 1):
        person = draw_person(number, size=128)
        box = np.array(person.box, np.float32)
        samples.append(Sample(str(number), str(number), person.photo, person.hair_mask, person.face_mask, box))
    bald, repaint = make_bald(samples[0].image, samples[0].hair_mask, samples[0].face_mask, config)
    return Case(samples[0], samples[1], None, 1, 0, bald, repaint, seed=1, own_curl=0)


def test_swapping_the_hair_changes_the_photo_under_the_mask_and_nothing_else() -> None:
    config = BaldConfig()
    case = a_transfer(config)
    swapped = leakage.swap_hair(case, config)
    hair = case.sample.hair_mask
    assert np.array_equal(swapped.sample.image[~hair], case.sample.image[~hair])
    assert (swapped.sample.image != case.sample.image).any(2)[hair].mean() > 0.9
    assert np.array_equal(swapped.repaint_mask, case.repaint_mask)
    assert np.array_equal(swapped.bald, case.bald)  # the fill takes no colour from under the mask
    assert swapped.seed == case.seed


def test_the_swap_difference_sees_a_model_that_copies_the_old_hair() -> None:
    config = BaldConfig()
    case = a_transfer(config)
    swapped = leakage.swap_hair(case, config)
    blind = [Drawing(c.bald, c.bald) for c in (case, swapped)]
    leaking = [Drawing(c.bald // 2 + c.sample.image // 2, c.bald) for c in (case, swapped)]
    assert leakage.swap_difference(case, *blind) == 0
    assert leakage.swap_difference(case, *leaking) > 2


@pytest.mark.parametrize(("leak", "low", "high"), [(0.0, -0.12, 0.12), (0.5, 0.3, 0.7)])
def test_old_curl_excess_is_chance_for_a_blind_model_and_high_for_a_leaking_one(
    leak: float, low: float, high: float
) -> None:
    """Also for a classifier that favours one class, and requests that depend on the own class."""
    rng = np.random.default_rng(0)
    rows = []
    for person in range(300):
        own = int(rng.integers(3))
        asked = (own + 1 + int(rng.integers(2))) % 3
        seen = own if rng.random() < leak else (asked if rng.random() < 0.5 else 0)
        row = {"person": str(person), "transfer": True, "own_curl": own, "curl_asked": asked, "curl_seen": seen}
        rows.append(row)
    estimate = leakage.old_curl_excess(pd.DataFrame(rows))
    assert estimate.value is not None
    assert low < estimate.value < high
    assert estimate.ci_low is not None
    assert estimate.ci_high is not None
    assert (estimate.ci_low <= 0 <= estimate.ci_high) == (leak == 0)


def test_old_curl_excess_has_a_reason_without_transfers() -> None:
    row = {"person": "a", "transfer": False, "own_curl": 1, "curl_asked": 1, "curl_seen": 1}
    assert "no transfer" in str(leakage.old_curl_excess(pd.DataFrame([row])).reason)


def test_seam_places_lie_inside_at_forehead_ears_and_crown(scene) -> None:  # type: ignore[no-untyped-def]
    _, hair, face, _, _ = scene
    places = seam_places(hair, face, None)
    assert len(places) == 4
    for x, y, side in places:
        assert 0 <= x <= hair.shape[1] - side
        assert 0 <= y <= hair.shape[0] - side
    forehead, left, right, crown = places
    assert left[0] < forehead[0] < right[0]
    assert crown[1] < forehead[1]
    assert seam_places(hair, np.zeros_like(face), None) == []


def test_what_bald_images_give_away_stands_in_the_report_above_chance_or_with_the_reason() -> None:
    nothing, judge = Measurements(), Judge(None, "none", reason="not there")
    judges = Judges(judge, judge, judge, judge, judge, torch.device("cpu"))
    found, outline = (Score(0.7, 0.6, 0.8, 0.5, 12, 30), Score(0.55, 0.4, 0.7, 0.5, 12, 30))
    results = summarise(nothing, judges, Leakage({"curl": found}, {"curl": outline}))
    curl = results["leakage_bald_curl"]
    assert curl.estimate.value == pytest.approx(0.2)
    assert (curl.estimate.ci_low, curl.estimate.ci_high) == pytest.approx((0.1, 0.3))
    assert (curl.estimate.n, curl.estimate.people) == (30, 12)
    assert "0.050" in curl.note
    few = results["leakage_bald_fringe"].estimate
    assert few.value is None
    assert "too few people" in str(few.reason)
    elsewhere = summarise(nothing, judges)["leakage_bald_curl"].estimate
    assert elsewhere.value is None
    assert elsewhere.reason
