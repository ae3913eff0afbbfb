"""The clustered interval covers what it should; the verdict rule errs as rarely as it says."""

import numpy as np
import pytest

from hair_pipeline.evaluation.ab_rule import decide
from hair_pipeline.evaluation.statistics import mean_by_person
from hair_pipeline.profile import AbTestConfig

CONFIG = AbTestConfig(bootstrap_samples=400)


@pytest.mark.parametrize("people", [6, 40])
def test_interval_covers_the_mean_of_clustered_values(people: int) -> None:
    """95% nominal; images of one person are strongly alike, which an interval over images would ignore."""
    rng = np.random.default_rng(0)
    names = np.repeat(np.arange(people).astype(str), 5)
    covered = 0
    for seed in range(300):
        values = rng.normal(0, 1, people).repeat(5) + rng.normal(0, 0.2, 5 * people)
        estimate = mean_by_person(values, names, samples=300, seed=seed)
        assert estimate.ci_low is not None
        assert estimate.ci_high is not None
        covered += estimate.ci_low <= 0 <= estimate.ci_high
    assert 0.90 <= covered / 300 <= 0.99


def test_missing_values_are_left_out_and_nothing_is_null_not_zero() -> None:
    estimate = mean_by_person([0.5, np.nan, 0.7], ["a", "a", "b"])
    assert (estimate.value, estimate.n, estimate.people) == (pytest.approx(0.6), 2, 2)
    empty = mean_by_person([np.nan, np.nan], ["a", "b"], why_empty="no reliable face")
    assert empty.value is None
    assert empty.reason == "no reliable face"
    lonely = mean_by_person([0.5, 0.7], ["a", "a"])
    assert lonely.value == pytest.approx(0.6)
    assert lonely.ci_low is None
    assert lonely.reason is not None


def simulate(rng: np.random.Generator, gain: float, people: int = 100, identity_drop: float = 0.0) -> str:
    """One A/B test of a model that is better by `gain` in both halves, with realistic scatter."""
    lpips_old = np.clip(rng.normal(0.30, 0.08, people), 0.05, None)
    lpips_new = lpips_old * (1 - gain) * rng.lognormal(0, 0.10, people)
    identity_old = np.clip(rng.normal(0.75, 0.08, people), -1, 1)
    identity_new = np.clip(identity_old * (1 + gain) - identity_drop + rng.normal(0, 0.03, people), -1, 1)
    names = np.arange(people).astype(str)
    return decide(names, lpips_old, lpips_new, identity_old, identity_new, CONFIG).verdict


def share(verdict: str, gain: float, trials: int = 200, **options: float) -> float:
    rng = np.random.default_rng(1)
    return float(np.mean([simulate(rng, gain, **options) == verdict for _ in range(trials)]))  # type: ignore[arg-type]


def test_an_equal_model_is_hardly_ever_approved() -> None:
    assert share("approve", 0.0) <= 0.025
    assert share("reject", 0.0) > 0.9


def test_a_model_at_the_limit_is_approved_in_at_most_the_nominal_rate() -> None:
    assert share("approve", 0.05) <= 0.06  # 2.5% nominal, 200 trials


def test_a_model_better_by_a_tenth_is_mostly_approved() -> None:
    assert share("approve", 0.10) > 0.8


def test_worse_identity_is_never_approved_whatever_the_hair() -> None:
    rng = np.random.default_rng(2)
    n = 100
    old, new = rng.normal(0.3, 0.02, n), rng.normal(0.15, 0.02, n)
    identity = rng.normal(0.8, 0.02, n)
    decision = decide(np.arange(n).astype(str), old, new, identity, identity - 0.03, CONFIG)
    assert decision.improvement.ci_low is not None
    assert decision.improvement.ci_low > 0.05
    assert decision.verdict == "reject"
    assert "identity" in decision.reasons[0]


def test_without_identity_or_people_the_rule_is_inconclusive_and_says_why() -> None:
    n = 20
    good, better = np.full(n, 0.3), np.full(n, 0.1)
    nothing = np.full(n, np.nan)
    decision = decide(np.arange(n).astype(str), good, better, nothing, nothing, CONFIG)
    assert decision.verdict == "inconclusive"
    assert "identity" in decision.reasons[0]
    assert decision.improvement.value is None
    few = decide(np.arange(3).astype(str), good[:3], better[:3], good[:3], good[:3], CONFIG)
    assert few.verdict == "inconclusive"
    assert "3 people" in few.reasons[0]


def test_images_of_one_person_do_not_count_as_many_people() -> None:
    """Four people with 25 lucky images each: the images are many, the people too few."""
    names = np.repeat(list("abcd"), 25)
    old, new = np.full(100, 0.3), np.full(100, 0.2)
    assert decide(names, old, new, old, old, CONFIG).verdict == "inconclusive"
