"""From rows of numbers to metrics with intervals, each beside another model's on the same pictures.

Belongs here: every metric of `METRICS` as an estimate, and its paired difference from a baseline. Does not belong here:
measuring (`measure`), the interval's formulas (`statistics`), and the pages (`html`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from hair_pipeline.evaluation.judges import Judge, Judges
from hair_pipeline.evaluation.leakage import old_curl_excess
from hair_pipeline.evaluation.measure import NAN, Measurements
from hair_pipeline.evaluation.metrics import distribution
from hair_pipeline.evaluation.metrics.definitions import METRICS, Metric
from hair_pipeline.evaluation.statistics import Estimate, mean_by_person, missing
from hair_pipeline.processing.leakage import MIN_PEOPLE, MIN_PEOPLE_PER_CLASS, Leakage

SET_METRICS = {
    "frechet_ring": ("ring", distribution.frechet_distance),
    "kernel_ring": ("ring", distribution.kernel_distance),
    "frechet_image": ("image", distribution.frechet_distance),
    "kernel_image": ("image", distribution.kernel_distance),
}
"""Metric -> which features it compares, and how."""
ACCURACIES = {
    "curl_accuracy": ("curl_seen", "curl_asked", False),
    "bangs_accuracy": ("bangs_seen", "bangs_asked", False),
    "curl_accuracy_real": ("curl_seen_real", "curl_asked", False),
    "curl_accuracy_transfer": ("curl_seen", "curl_asked", True),
    "bangs_accuracy_transfer": ("bangs_seen", "bangs_asked", True),
}
"""Metric -> (column of the class seen, column of the class asked for, whether transfers are looked at)."""
BALD_PROBE = "leakage_bald_"
"""Metrics of the bald images themselves, by what is read from them."""
OWN_STYLE_ONLY = ("lpips_hair", "psnr_hair", "ssim_hair")
"""Metrics that need the photo's own hair as ground truth."""


@dataclass(frozen=True)
class Result:
    """One metric of one model: its definition (renamed for a stand-in), the judge and the estimate.

    Attributes:
        difference: the estimate minus the baseline's, on the same pictures, with a paired interval; None where one of
            them was not measured or the metric is not a mean or a distance.
    """

    metric: Metric
    key: str
    extractor: str | None
    note: str
    estimate: Estimate
    difference: Estimate | None = None


def summarise(
    measured: Measurements, judges: Judges, bald: Leakage | None = None, baseline: Measurements | None = None
) -> dict[str, Result]:
    """Every metric of `METRICS`, by name; what could not be measured has a reason.

    Args:
        bald: what the bald images on disk give away, where that was looked at.
        baseline: of another model that drew the same cases, in the same order.
    """
    frame = measured.frame()
    results = {}
    for metric in METRICS:
        if metric.name.startswith(BALD_PROBE):
            results[metric.name] = _bald_result(metric, bald)
            continue
        result = _result(metric, frame, measured, judges)
        if baseline is not None and result.estimate.measured:
            result = replace(result, difference=_difference(metric.name, measured, baseline))
        results[metric.name] = result
    return results


def _difference(name: str, measured: Measurements, baseline: Measurements) -> Estimate | None:
    """A metric of `measured` minus that of `baseline`; the interval draws people, and takes both of their pictures."""
    if name in SET_METRICS:
        found = (_set_distance(name, measured) - _set_distance(name, baseline)).estimate()
    elif name == "leakage_transfer":
        return None
    else:
        mine, other = measured.frame(), baseline.frame()
        values = values_of(name, mine) - values_of(name, other)
        found = mean_by_person(values, mine["person"].to_numpy(str))
    return found if found.measured else None


def _bald_result(metric: Metric, bald: Leakage | None) -> Result:
    if bald is None:
        return Result(metric, metric.name, None, "", missing("the validation report looks at it, on all bald images"))
    target = metric.name.removeprefix(BALD_PROBE)
    score, outline = bald.bald.get(target), bald.mask.get(target)
    if score is None or outline is None:
        why = f"too few people: {MIN_PEOPLE} with a known label are needed, and {MIN_PEOPLE_PER_CLASS} of each class"
        return Result(metric, metric.name, None, "", missing(why))
    low, high, chance = score.low - score.chance, score.high - score.chance, score.chance
    note = f"The mask's outline alone, which the model is given anyway: {outline.accuracy - chance:.3f}."
    estimate = Estimate(score.accuracy - chance, low, high, score.images, score.people)
    return Result(metric, metric.name, "linear probe", note, estimate)


def _result(metric: Metric, frame: pd.DataFrame, measured: Measurements, judges: Judges) -> Result:
    judge = _judge_of(metric.name, judges)
    shown, key, note = metric, metric.name, "" if judge is None else judge.note
    if judge is not None and judge.stand_in:
        shown, key = _renamed(metric), f"{metric.name}_stand_in"
    if judge is not None and judge.network is None:
        return Result(shown, key, None, note, missing(judge.reason))
    estimate = _estimate(metric.name, frame, measured)
    if metric.name in SET_METRICS and estimate.measured and estimate.n < distribution.TRUSTED_IMAGES:
        note = f"{note} Only N = {estimate.n} on both sides, below 2,000: compare with nothing but the base beside it."
    return Result(shown, key, None if judge is None else judge.name, note.strip(), estimate)


def _renamed(metric: Metric) -> Metric:
    """The metric under a name that does not promise the published network."""
    if metric.name == "lpips_hair":
        title = "Hair-region perceptual distance (LPIPS with a stand-in trunk)"
    elif metric.name in SET_METRICS:
        kind = "Fréchet distance" if metric.name.startswith("frechet") else "Kernel distance"
        where = "in the hair-skin ring" if metric.name.endswith("ring") else "of whole images"
        title = f"{kind} {where} (stand-in extractor)"
    else:
        title = f"{metric.title} (stand-in recogniser)"
    return replace(metric, title=title)


def _judge_of(name: str, judges: Judges) -> Judge[Any] | None:
    if name.startswith("identity"):
        return judges.second if "second" in name else judges.recogniser
    if name == "lpips_hair":
        return judges.perceptual
    if name in SET_METRICS:
        return judges.extractor
    return judges.classifier if name in ACCURACIES or name == "leakage_transfer" else None


def _estimate(name: str, frame: pd.DataFrame, measured: Measurements) -> Estimate:
    if frame.empty:
        return missing("no picture was made")
    if name in SET_METRICS:
        return _set_distance(name, measured).estimate()
    if name == "leakage_transfer":
        return old_curl_excess(frame)
    if name.endswith("_transfer") and not frame["transfer"].any():
        return missing("no other held-out person to take a style from")
    why = {
        "identity_raw": "no face is reliable (blurred, missing or turned away), or only finished pictures are given",
        "identity": "no face is reliable (blurred, missing or turned away)",
        "lpips_hair": "no photo has a hair mask large enough",
        "leakage_swap": "no transfer between two people was drawn again; or evaluation.leakage_images is 0",
    }
    reason = "the labels name no class to ask for" if name in ACCURACIES else "no picture allows it"
    values = values_of(name, frame)
    people = frame["person"].to_numpy(str)
    return mean_by_person(values, people, why_empty=why.get(name, reason), share=name in ACCURACIES)


def values_of(name: str, frame: pd.DataFrame) -> np.ndarray:
    """A metric's value for every row, NaN where it does not apply; for an accuracy 1 is right and 0 wrong."""
    if name in ACCURACIES:
        seen, asked, transfer = ACCURACIES[name]
        pairs = zip(frame[seen], frame[asked], frame["transfer"], strict=True)
        return np.array(
            [NAN if pd.isna(a) or pd.isna(b) or t != transfer else float(int(a) == int(b)) for a, b, t in pairs]
        )
    values = frame[name].to_numpy(float)
    return np.where(frame["transfer"], NAN, values) if name in OWN_STYLE_ONLY else values


def _set_distance(name: str, measured: Measurements) -> distribution.SetDistance:
    if name not in measured.distances:
        region, distance = SET_METRICS[name]
        real, made = (measured.features.get(f"{region}_{side}") for side in ("real", "made"))
        if real is None or made is None:
            why = "hair and skin meet in no picture" if region == "ring" else "no picture was made"
            return distribution.SetDistance(np.zeros(0), 0, 0, why)
        people = measured.features[f"{region}_people"].tolist()
        measured.distances[name] = distribution.set_distance(distance, real.astype(float), made.astype(float), people)
    return measured.distances[name]


def per_image(frames: Mapping[str, pd.DataFrame], results: Mapping[str, Result]) -> pd.DataFrame:
    """The rows of per_image.parquet: one per picture and model; what a stand-in judged is called as in the report.

    Args:
        frames: name of a model -> its rows.
        results: metric -> its result, of any of the models: the same networks judge all.
    """
    table = pd.concat([frame.assign(model=name) for name, frame in frames.items()], ignore_index=True)
    return table.rename(columns={metric: result.key for metric, result in results.items()})


def as_json(result: Result, baseline: Result | None) -> dict[str, Any]:
    """One entry of metrics.json; see `schema.MetricEntry`."""
    metric, estimate = result.metric, result.estimate
    passed = None if estimate.value is None else metric.passes(estimate.value)
    base = None if baseline is None or not baseline.estimate.measured else _numbers(baseline.estimate)
    difference = None if base is None or result.difference is None else _numbers(result.difference)
    return _numbers(estimate) | {
        "direction": metric.direction,
        "threshold": metric.threshold,
        "passed": passed,
        "extractor": result.extractor,
        "unit": metric.unit,
        "title": metric.title,
        "note": result.note,
        "baseline": base,
        "difference": difference,
    }


def _numbers(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": estimate.value,
        "ci_low": estimate.ci_low,
        "ci_high": estimate.ci_high,
        "n": estimate.n,
        "people": estimate.people,
        "reason": estimate.reason,
    }


def for_page(result: Result, baseline: Result | None) -> dict[str, Any]:
    """What the templates need of a metric."""
    metric = result.metric
    more = {
        "stand_in": result.key != metric.name,
        "digits": metric.digits,
        "explanation": metric.explanation,
        "source": metric.source,
        "name": metric.name,
    }
    return as_json(result, baseline) | more
