"""Means with confidence intervals when several images belong to one person.

Belongs here: the clustered bootstrap and the numbers built on it. Does not belong here: any image or model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special  # type: ignore[import-untyped]

CONFIDENCE = 0.95
BOOTSTRAP_SAMPLES = 2000
MIN_PEOPLE = 5
"""With fewer no interval is given: a nominal 95% interval of 2 to 4 people covers the truth in far fewer cases."""


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty, or the reason why there is none.

    Attributes:
        value: the estimate; None when it could not be measured.
        ci_low, ci_high: bounds of the 95% interval; None with fewer than `MIN_PEOPLE` people.
        n: images behind it. people: persons behind it.
        reason: why `value` (or the interval) is missing.
    """

    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int = 0
    people: int = 0
    reason: str | None = None

    @property
    def measured(self) -> bool:
        return self.value is not None


def missing(reason: str) -> Estimate:
    """The estimate of something that could not be measured."""
    return Estimate(None, reason=reason)


def too_few(people: int) -> str | None:
    """Why so many people give no interval; None where they do."""
    return None if people >= MIN_PEOPLE else f"no interval: too few people ({people}, at least {MIN_PEOPLE})"


@lru_cache(maxsize=8)
def cluster_weights(clusters: int, samples: int, seed: int) -> np.ndarray:
    """Bootstrap draws over `clusters` persons: int64 (samples, clusters), how often each person was drawn.

    The array is shared between calls and cannot be written to.
    """
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=samples)
    weights.setflags(write=False)
    return weights


def cluster_sums(values: np.ndarray, people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per person: sum of the finite values and their number, both float64 (clusters,)."""
    names, index = np.unique(people, return_inverse=True)
    finite = np.isfinite(values)
    sums = np.bincount(index, np.where(finite, values, 0.0), minlength=len(names))
    counts = np.bincount(index, finite, minlength=len(names))
    return sums, counts


def expanded_interval(draws: np.ndarray, clusters: int) -> tuple[float, float]:
    """95% percentile interval of bootstrap draws, expanded for few clusters.

    The plain percentile interval is too narrow with few clusters: it divides by k instead of k - 1 and takes the
    normal where the t quantile is due. The percentiles are therefore moved to
    ``Phi(-sqrt(k / (k - 1)) * t[k - 1])`` (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", 5.3).
    """
    t = -special.stdtrit(clusters - 1, (1 - CONFIDENCE) / 2)
    tail = special.ndtr(-math.sqrt(clusters / (clusters - 1)) * t)
    low, high = np.quantile(draws[np.isfinite(draws)], [tail, 1 - tail])
    return float(low), float(high)


def wilson_interval(share: float, people: int) -> tuple[float, float]:
    """95% score interval of a share seen on so many people (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    z2 = float(special.ndtri((1 + CONFIDENCE) / 2)) ** 2
    middle = share + z2 / (2 * people)
    reach = math.sqrt(z2 * (share * (1 - share) / people + z2 / (4 * people**2)))
    scale = 1 + z2 / people
    return max(0.0, min(share, (middle - reach) / scale)), min(1.0, max(share, (middle + reach) / scale))


def mean_by_person(
    values: Sequence[float] | np.ndarray,
    people: Sequence[str] | np.ndarray,
    *,
    samples: int = BOOTSTRAP_SAMPLES,
    seed: int = 0,
    why_empty: str = "no image could be measured",
    share: bool = False,
) -> Estimate:
    """Mean over images with a 95% bootstrap interval that resamples persons, not images.

    Args:
        values: one number per image; NaN where it was not measured (those are left out and not counted).
        people: the person of each image.
        samples: bootstrap draws. seed: of the draws.
        why_empty: the reason given when nothing was measured.
        share: the values are 0 or 1. Where all people agree the bootstrap knows no uncertainty, though there is some
            (ten of ten is no certainty): the interval is then Wilson's, with people as its number of observations.
    """
    numbers = np.asarray(values, np.float64)
    names = np.asarray(people, str)
    keep = np.isfinite(numbers)
    n, clusters = int(keep.sum()), len(np.unique(names[keep]))
    if n == 0:
        return missing(why_empty)
    mean = float(numbers[keep].mean())
    if (reason := too_few(clusters)) is not None:
        return Estimate(mean, n=n, people=clusters, reason=reason)
    sums, counts = cluster_sums(numbers[keep], names[keep])
    weights = cluster_weights(clusters, samples, seed)
    low, high = expanded_interval((weights @ sums) / (weights @ counts), clusters)
    if share and low == high:
        low, high = wilson_interval(mean, clusters)
    return Estimate(mean, low, high, n, clusters)
