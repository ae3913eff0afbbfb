"""What the A/B test says on its page and in verdict.json, in words and rows.

Belongs here: texts and tables made of a decision. Does not belong here: the run of the test, the rule itself.
"""

from __future__ import annotations

from typing import Any

from hair_pipeline.evaluation.ab_rule import Decision
from hair_pipeline.evaluation.html import difference, percent
from hair_pipeline.evaluation.results import Result
from hair_pipeline.evaluation.statistics import Estimate
from hair_pipeline.profile import AbTestConfig


def decision_numbers(decision: Decision) -> dict[str, dict[str, Any]]:
    """The decision's estimates for verdict.json."""
    estimates = {
        "improvement": decision.improvement,
        "hair_gain": decision.hair_gain,
        "identity_gain": decision.identity_gain,
        "identity_difference": decision.identity_difference,
    }
    return {
        name: {
            "value": e.value,
            "ci_low": e.ci_low,
            "ci_high": e.ci_high,
            "n": e.n,
            "people": e.people,
            "reason": e.reason,
        }
        for name, e in estimates.items()
    }


def decision_rows(decision: Decision, when: str, distance: str, config: AbTestConfig) -> list[dict[str, Any]]:
    """Rows of the page's first table.

    Args:
        when: "before" or "after" paste-back. distance: title of the hair-region distance.
    """

    def row(title: str, estimate: Estimate, rule: str, *, relative: bool) -> dict[str, Any]:
        text = percent if relative else difference
        return {
            "title": title,
            "value": estimate.value,
            "reason": estimate.reason,
            "text": text(estimate.value),
            "interval": "too few people"
            if estimate.ci_low is None
            else f"{text(estimate.ci_low)} … {text(estimate.ci_high)}",
            "n": estimate.n,
            "people": estimate.people,
            "rule": rule,
        }

    need = config.min_improvement
    return [
        row("Improvement: mean of the two gains", decision.improvement, f"lower bound above {need:.0%}", relative=True),
        row(
            f"Gain in {distance[0].lower() + distance[1:]}",
            decision.hair_gain,
            f"half of the improvement; lower bound above -{config.lpips_margin:.0%}",
            relative=True,
        ),
        row(
            f"Gain in identity similarity ({when} paste-back)",
            decision.identity_gain,
            "half of the improvement",
            relative=True,
        ),
        row(
            "Identity similarity, new minus old",
            decision.identity_difference,
            f"lower bound above -{config.identity_margin}",
            relative=False,
        ),
    ]


def earlier_looks(count: int) -> list[str]:
    """The warning among the reasons where the same two models were compared before."""
    if not count:
        return []
    tests = "1 earlier test has a verdict" if count == 1 else f"{count} earlier tests have a verdict"
    return [f"caution: {tests} on the same two models; every further look makes a wrong approval more likely"]


def rule_text(config: AbTestConfig) -> str:
    """The rule in words, with the profile's numbers."""
    need, margin, hair = f"{config.min_improvement:.0%}", config.identity_margin, f"-{config.lpips_margin:.0%}"
    return (
        "Improvement is the mean of two relative gains, of the mean hair-region distance (lower is better) and of the "
        "mean identity similarity (higher is better). Intervals are 95% bootstrap intervals that draw persons and take "
        "a person's old and new pictures together. Approve: the lower bound of the improvement is above "
        f"{need}, that of the gain in hair-region distance above {hair}, that of the identity difference above "
        f"-{margin}, and the new model returned a usable picture of every photo. Reject: the upper bound of the "
        f"improvement is below {need}, that of the gain in hair-region distance below {hair} or that of the identity "
        f"difference below -{margin}. Inconclusive: everything else, also when identity or distance could not be "
        "measured, or on fewer than "
        f"{config.min_people} people."
    )


def warnings(results: dict[str, Result], origin: str, left_out: dict[str, str], people: int) -> list[str]:
    """What a reader must know before the numbers."""
    found = []
    stand_ins = sorted({r.extractor for r in results.values() if r.key.endswith("_stand_in") and r.extractor})
    if stand_ins:
        found.append(f"Judged by small stand-in networks, not by published ones: {', '.join(stand_ins)}.")
    if "validation" in origin:
        found.append(f"The photos are of {origin}: the verdict says nothing about real customers.")
    if people < 100:
        found.append(f"{people} people; the specification asks for 100 customers.")
    if left_out:
        found.append(f"{len(left_out)} entries under Left out.")
    return found
