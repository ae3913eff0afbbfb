"""The clustered interval covers what it should; the verdict rule errs as rarely as it says."""

import numpy as np
import pytest
from scipy.stats import binomtest  # type: ignore[import-untyped]

from hair_pipeline.evaluation.ab_rule import decide
from hair_pipeline.evaluation.statistics import mean_by_person, wilson_interval
from hair_pipeline.profile import AbTestConfig, load_profile

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
    for few in (["a", "a", "a", "a", "a"], ["a", "b", "c", "d", "d"]):
        estimate = mean_by_person([0.5, 0.7, 0.6, 0.6, 0.6], few)
        assert estimate.value == pytest.approx(0.6)
        assert estimate.ci_low is None
        assert "too few people" in str(estimate.reason)
    assert mean_by_person([0.5, 0.7, 0.6, 0.6, 0.6], list("abcde")).ci_low is not None


def test_a_share_on_which_all_people_agree_is_not_certain() -> None:
    people = [str(number) for number in range(10)]
    right = mean_by_person([1.0] * 10, people, share=True)
    assert (right.ci_low, right.ci_high) == pytest.approx((0.7225, 1.0), abs=1e-4)
    wrong = mean_by_person([0.0] * 20, people * 2, share=True)  # people count, not photos
    assert (wrong.ci_low, wrong.ci_high) == pytest.approx((0.0, 0.2775), abs=1e-4)
    reference = binomtest(3, 10).proportion_ci(method="wilson")
    assert wilson_interval(0.3, 10) == pytest.approx((reference.low, reference.high))
    mixed = [1.0] * 9 + [0.0]
    assert mean_by_person(mixed, people, share=True) == mean_by_person(mixed, people)
    assert mean_by_person([1.0] * 10, people).ci_low == 1.0  # no share: a mean without spread


def simulate(rng: np.random.Generator, gain: float, people: int = 100, photos: int = 1) -> str:
    """One A/B test of a model that is better by `gain` in both halves, with realistic scatter.

    Several photos of a person share half of the scatter, so they are not worth as many people.
    """
    n = people * photos

    def scatter(spread: float) -> np.ndarray:
        own, shared = rng.normal(0, spread, n), rng.normal(0, spread, people).repeat(photos)
        return own if photos == 1 else (own + shared) / np.sqrt(2)

    lpips_old = np.clip(0.30 + scatter(0.08), 0.05, None)
    lpips_new = lpips_old * (1 - gain) * np.exp(scatter(0.10) - 0.10**2 / 2)
    identity_old = np.clip(0.75 + scatter(0.08), -1, 1)
    identity_new = np.clip(identity_old * (1 + gain) + scatter(0.03), -1, 1)
    names = np.arange(people).astype(str).repeat(photos)
    return decide(names, lpips_old, lpips_new, identity_old, identity_new, CONFIG).verdict


def shares(gain: float, trials: int, **options: int) -> dict[str, float]:
    """Verdict -> share of simulated tests."""
    rng = np.random.default_rng(1)
    verdicts = [simulate(rng, gain, **options) for _ in range(trials)]
    return {verdict: verdicts.count(verdict) / trials for verdict in ("approve", "reject", "inconclusive")}


def test_an_equal_model_is_hardly_ever_approved() -> None:
    """1,000 tests of 100 customers."""
    found = shares(0.0, 1000)
    assert found["approve"] < 0.025
    assert found["reject"] > 0.9


def test_a_model_better_by_a_tenth_is_mostly_approved() -> None:
    """1,000 tests of 100 customers."""
    assert shares(0.10, 1000)["approve"] > 0.8


def test_a_model_at_the_limit_is_approved_at_the_nominal_rate() -> None:
    """The lower bound of a 95% interval lies above the truth in 2.5% of the tests: 1.2% to 4.2% of 1,000 are chance."""
    assert 0.012 <= shares(0.05, 1000)["approve"] <= 0.042


def test_several_photos_of_each_person_do_not_raise_the_error_rate() -> None:
    """30 people with 4 photos that are alike: an interval over photos would be too narrow."""
    assert shares(0.05, 600, people=30, photos=4)["approve"] <= 0.045
    assert shares(0.0, 300, people=30, photos=4)["approve"] == 0


def test_a_model_that_fails_on_some_photos_is_not_approved_for_the_others() -> None:
    n = 100
    old, new, identity = np.full(n, 0.3), np.full(n, 0.2), np.linspace(0.7, 0.9, n)
    names = np.arange(n).astype(str)
    assert decide(names, old, new, identity, identity + 0.02, CONFIG).verdict == "approve"
    decision = decide(names, old, new, identity, identity + 0.02, CONFIG, failures=3)
    assert decision.verdict == "inconclusive"
    assert "3 photos" in decision.reasons[0]


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


@pytest.mark.parametrize(("lpips", "verdict"), [(0.48, "reject"), (0.315, "inconclusive"), (0.29, "approve")])
def test_much_worse_hair_is_never_approved_whatever_the_identity(lpips: float, verdict: str) -> None:
    """A low identity that doubles is a gain of 100%, which would outweigh any loss of hair."""
    rng = np.random.default_rng(3)
    n = 100
    old, new = rng.normal(0.30, 0.03, n), rng.normal(lpips, 0.03, n)
    identity = rng.normal(0.25, 0.02, n)
    decision = decide(np.arange(n).astype(str), old, new, identity, identity + 0.25, CONFIG)
    assert decision.improvement.ci_low is not None
    assert decision.improvement.ci_low > 0.05
    assert decision.verdict == verdict
    assert any("hair" in reason for reason in decision.reasons)


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


@pytest.mark.parametrize("name", ["rtx24gb", "h100"])
def test_profiles_for_real_photos_ask_for_many_people(name: str) -> None:
    assert load_profile(name).ab_test.min_people >= 50


def test_old_pictures_that_are_the_photos_themselves_leave_no_gain_to_compute() -> None:
    n = 20
    photos, new, identity = np.zeros(n), np.full(n, 0.2), np.linspace(0.7, 0.9, n)
    decision = decide(np.arange(n).astype(str), photos, new, identity, identity, CONFIG)
    assert decision.verdict == "inconclusive"
    assert decision.hair_gain.value is None
    assert "the photos themselves" in decision.reasons[0]


def test_images_of_one_person_do_not_count_as_many_people() -> None:
    """Four people with 25 lucky images each: the images are many, the people too few."""
    names = np.repeat(list("abcd"), 25)
    old, new = np.full(100, 0.3), np.full(100, 0.2)
    assert decide(names, old, new, old, old, CONFIG).verdict == "inconclusive"
