"""Differences between two models on the same pictures: paired by case, intervals over people."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hair_pipeline.evaluation.judges import Judge, Judges
from hair_pipeline.evaluation.measure import Measurements
from hair_pipeline.evaluation.metrics import distribution
from hair_pipeline.evaluation.results import as_json, summarise

SEEN = Judge(torch.nn.Identity(), "somebody")
JUDGES = Judges(SEEN, SEEN, SEEN, SEEN, SEEN, torch.device("cpu"))
COLUMNS = (
    *("identity_raw", "identity", "identity_second_raw", "identity_second", "lpips_hair", "psnr_hair", "ssim_hair"),
    *("psnr_background", "ssim_background", "halo", "rim_sharpness", "untouched_changed", "leakage_swap"),
)


def measured(distance: np.ndarray) -> Measurements:
    """Own-style pictures with these hair distances, two of each person; nothing else was measured."""
    nothing = dict.fromkeys(COLUMNS, float("nan"))
    words = dict.fromkeys(("curl_asked", "curl_seen", "bangs_asked", "bangs_seen", "curl_seen_real", "own_curl"))
    rows = [
        nothing | words | {"case": f"{i}|{i}", "person": f"p{i // 2}", "transfer": False, "lpips_hair": float(value)}
        for i, value in enumerate(distance)
    ]
    return Measurements(rows)


def test_a_difference_is_paired_by_picture() -> None:
    rng = np.random.default_rng(0)
    old = rng.uniform(0.1, 0.9, 24)  # pictures differ much more than the models do
    new = old - 0.05 + rng.normal(0, 0.005, 24)
    base = summarise(measured(old), JUDGES)
    result = summarise(measured(new), JUDGES, baseline=measured(old))["lpips_hair"]
    assert result.difference is not None
    assert result.difference.value == pytest.approx(float((new - old).mean()))
    assert result.difference.ci_high is not None
    assert result.difference.ci_high < 0
    assert (result.difference.n, result.difference.people) == (24, 12)
    low, high = result.estimate.ci_low, base["lpips_hair"].estimate.ci_high
    assert low is not None
    assert high is not None
    assert low < high  # the two intervals alone could not tell the models apart

    entry = as_json(result, base["lpips_hair"])
    assert entry["difference"]["value"] == result.difference.value
    assert as_json(base["lpips_hair"], None)["difference"] is None


def test_equal_models_do_not_differ_and_what_was_not_measured_has_no_difference() -> None:
    values = np.linspace(0.2, 0.8, 10)
    results = summarise(measured(values), JUDGES, baseline=measured(values))
    same = results["lpips_hair"].difference
    assert same is not None
    assert (same.value, same.ci_low, same.ci_high) == (0, 0, 0)
    assert results["identity"].difference is None
    assert "evaluation.leakage_images" in str(results["leakage_swap"].estimate.reason)
    assert results["frechet_ring"].difference is None


@pytest.mark.parametrize("distance", [distribution.frechet_distance, distribution.kernel_distance])
def test_the_difference_of_set_distances_has_a_paired_interval(distance) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(1)
    real, people = rng.normal(size=(60, 4)), [str(i // 3) for i in range(60)]
    near, far = real + rng.normal(0, 0.1, real.shape), real + 1.5
    near_set, far_set = (distribution.set_distance(distance, real, made, people) for made in (near, far))
    better = (near_set - far_set).estimate()
    assert better.value == pytest.approx(distance(real, near) - distance(real, far))
    assert better.ci_high is not None
    assert better.ci_high < 0
    worse = (far_set - near_set).estimate()
    assert worse.value == pytest.approx(-better.value)  # type: ignore[operator]
    assert worse.ci_low == pytest.approx(-better.ci_high)
    few = distribution.set_distance(distance, real[:3], near[:3], people[:3])
    assert (near_set - few).estimate().value is None
    assert (few - few).estimate().value is None


def test_an_accuracy_without_any_error_keeps_an_interval() -> None:
    found = measured(np.linspace(0.2, 0.8, 20))
    for row in found.rows:
        row |= {"curl_asked": 1, "curl_seen": 1}
    accuracy = summarise(found, JUDGES)["curl_accuracy"].estimate
    assert (accuracy.value, accuracy.people, accuracy.ci_high) == (1.0, 10, 1.0)
    assert accuracy.ci_low == pytest.approx(0.7225, abs=1e-4)
