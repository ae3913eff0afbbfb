"""The rule that turns paired measurements of an old and a new model into approve, reject or inconclusive.

Belongs here: the statistics of the verdict, on plain arrays. Does not belong here: pictures, models, files.

The rule, exactly. Both models drew the same images from the same seeds, masks and style references.
With ``L`` = hair-region LPIPS (lower is better) and ``S`` = identity similarity (higher is better), means over images:

    gain_L = (mean L_old - mean L_new) / mean L_old
    gain_S = (mean S_new - mean S_old) / |mean S_old|
    improvement = (gain_L + gain_S) / 2
    identity difference = mean S_new - mean S_old

Each has a 95% interval from a bootstrap that draws persons, and every draw takes a person's old and new images
together (paired, clustered). The verdict is

    inconclusive   when no identity or no LPIPS was measured, or fewer than `min_people` people have both;
    approve        when the lower bound of the improvement is above 5%, that of gain_L above -5% and that of the
                   identity difference above -0.01 (neither hair nor face is inferior);
    reject         when the upper bound of the improvement is below 5%, that of gain_L below -5% or that of the
                   identity difference below -0.01 (certainly inferior);
    inconclusive   otherwise: more images are needed.

The two margins keep one half from paying for the other: gain_S is relative, and a low identity that doubles would
outweigh any loss of hair.

A new model that returned no usable picture of some photo is never approved, however good the others are: they would
be a chosen few. What would be `approve` is `inconclusive` then.

People's sign-off is a separate input, recorded in the registry; this rule never looks at it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hair_pipeline.evaluation.statistics import (
    Estimate,
    cluster_sums,
    cluster_weights,
    expanded_interval,
    missing,
    too_few,
)
from hair_pipeline.profile import AbTestConfig

Verdict = Literal["approve", "reject", "inconclusive"]


@dataclass(frozen=True)
class Decision:
    """A verdict, why, and the numbers behind it.

    Attributes:
        verdict: see the module's rule.
        reasons: one sentence per condition that decided.
        improvement: relative, 0.05 is 5%. hair_gain, identity_gain: its two halves.
        identity_difference: in units of cosine similarity.
    """

    verdict: Verdict
    reasons: list[str]
    improvement: Estimate
    hair_gain: Estimate
    identity_gain: Estimate
    identity_difference: Estimate
    people: int = field(default=0)


_SMALLEST_DISTANCE = 1e-6
"""Below this a distance is rounding, and a gain relative to it has no meaning."""


def decide(
    people: np.ndarray,
    lpips_old: np.ndarray,
    lpips_new: np.ndarray,
    identity_old: np.ndarray,
    identity_new: np.ndarray,
    config: AbTestConfig,
    *,
    failures: int = 0,
) -> Decision:
    """Apply the rule.

    Args:
        people: (n,) the person of each image.
        lpips_old, lpips_new, identity_old, identity_new: (n,) float, NaN where not measured. A pair with one side
            missing is left out.
        failures: photos of which the new model returned no usable picture.
    """
    names = np.asarray(people, str)
    lpips_pairs, identity_pairs = _pairs(lpips_old, lpips_new), _pairs(identity_old, identity_new)
    for what, pairs in (("hair-region distance", lpips_pairs), ("identity similarity", identity_pairs)):
        if not np.isfinite(pairs).any():
            reason = f"{what} could not be measured on any image of both models"
            none = missing(reason)
            return Decision("inconclusive", [f"inconclusive: {reason}"], none, none, none, none)
    if np.nanmean(lpips_pairs[0]) < _SMALLEST_DISTANCE:
        reason = "the old model's mean hair-region distance is 0 (are its pictures the photos themselves?): no gain"
        none = missing(f"{reason} can be computed")
        return Decision("inconclusive", [f"inconclusive: {none.reason}"], none, none, none, none)
    draws = _draws(names, lpips_pairs, identity_pairs, config)
    both = names[np.isfinite(lpips_pairs).all(0) & np.isfinite(identity_pairs).all(0)]
    clusters = len(np.unique(both))
    numbers = {name: _estimate(values, n, clusters) for name, (values, n) in draws.items()}
    verdict, reasons = _judge(numbers, clusters, config)
    if failures and verdict == "approve":
        verdict = "inconclusive"
        reasons = [f"inconclusive: the new model returned no usable picture of {failures} photos (see Left out)"]
    return Decision(verdict, reasons, people=clusters, **numbers)


def _pairs(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """(2, n) old and new, NaN in both rows where either is missing."""
    pairs = np.stack([np.asarray(old, np.float64), np.asarray(new, np.float64)])
    return np.where(np.isfinite(pairs).all(0), pairs, np.nan)


def _draws(
    names: np.ndarray, lpips: np.ndarray, identity: np.ndarray, config: AbTestConfig
) -> dict[str, tuple[np.ndarray, int]]:
    """Bootstrap draws of every number, the estimate itself in front; and its number of images."""
    clusters = len(np.unique(names))
    weights = np.concatenate(
        [np.ones((1, clusters), np.int64), cluster_weights(clusters, config.bootstrap_samples, config.seed)]
    )

    def means(values: np.ndarray) -> np.ndarray:
        sums, counts = cluster_sums(values, names)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights @ sums) / (weights @ counts)

    old_l, new_l, old_s, new_s = means(lpips[0]), means(lpips[1]), means(identity[0]), means(identity[1])
    n_l, n_s = int(np.isfinite(lpips[0]).sum()), int(np.isfinite(identity[0]).sum())
    hair_gain = (old_l - new_l) / np.maximum(old_l, _SMALLEST_DISTANCE)
    identity_gain = (new_s - old_s) / np.maximum(np.abs(old_s), 1e-9)
    return {
        "improvement": ((hair_gain + identity_gain) / 2, min(n_l, n_s)),
        "hair_gain": (hair_gain, n_l),
        "identity_gain": (identity_gain, n_s),
        "identity_difference": (new_s - old_s, n_s),
    }


def _estimate(draws: np.ndarray, n: int, clusters: int) -> Estimate:
    if (reason := too_few(clusters)) is not None:
        return Estimate(float(draws[0]), n=n, people=clusters, reason=reason)
    low, high = expanded_interval(draws[1:], clusters)
    return Estimate(float(draws[0]), low, high, n, clusters)


def _judge(numbers: dict[str, Estimate], clusters: int, config: AbTestConfig) -> tuple[Verdict, list[str]]:
    if clusters < config.min_people:
        return "inconclusive", [
            f"inconclusive: distance in the hair and identity were both measured on {clusters} people, "
            f"the rule asks for at least {config.min_people}"
        ]
    gain, hair, face = (numbers[name] for name in ("improvement", "hair_gain", "identity_difference"))
    need, margin = f"{config.min_improvement:.0%}", f"{config.lpips_margin:.0%}"
    conditions = (
        _Condition(
            config.min_improvement,
            *_bounds(gain),
            f"95% interval {_range(gain, '+.1%')}",
            rejected=f"the improvement is below {need}",
            unsure=f"the improvement is not surely above {need}",
            met=f"the improvement is surely above {need}",
        ),
        _Condition(
            -config.lpips_margin,
            *_bounds(hair),
            f"gain in hair-region distance, 95% interval {_range(hair, '+.1%')}",
            rejected=f"hair is worse by more than {margin}",
            unsure=f"hair may be worse by more than {margin}",
            met=f"hair is not worse by more than {margin}",
        ),
        _Condition(
            -config.identity_margin,
            *_bounds(face),
            f"identity difference, 95% interval {_range(face, '+.4f')}",
            rejected=f"identity is worse by more than {config.identity_margin}",
            unsure=f"identity may be worse by more than {config.identity_margin}",
            met=f"identity is not worse by more than {config.identity_margin}",
        ),
    )
    if rejected := [f"reject: {c.rejected} ({c.shown})" for c in conditions if c.high < c.limit]:
        return "reject", rejected
    if unsure := [f"inconclusive: {c.unsure} ({c.shown})" for c in conditions if c.low <= c.limit]:
        return "inconclusive", unsure
    return "approve", [f"approve: {c.met} ({c.shown})" for c in conditions]


@dataclass(frozen=True)
class _Condition:
    """One of the rule's conditions: an interval that must lie above a limit, and what to say of it."""

    limit: float
    low: float
    high: float
    shown: str
    rejected: str
    unsure: str
    met: str


def _bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.ci_low is not None  # `min_people` is never below what an interval needs
    assert estimate.ci_high is not None
    return estimate.ci_low, estimate.ci_high


def _range(estimate: Estimate, form: str) -> str:
    low, high = _bounds(estimate)
    return f"{low:{form}} to {high:{form}}"
