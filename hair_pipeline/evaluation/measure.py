"""From drawn pictures to rows of numbers, and from rows to metrics with intervals.

Belongs here: which metric applies to which case. Does not belong here: the metrics' formulas (`metrics`), drawing
(`contenders`), and the pages (`html`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from hair_pipeline.evaluation.cases import Case
from hair_pipeline.evaluation.contenders import Drawing
from hair_pipeline.evaluation.judges import Judge, Judges
from hair_pipeline.evaluation.metrics import distribution, learned, seam
from hair_pipeline.evaluation.metrics.definitions import METRICS, Metric
from hair_pipeline.evaluation.regions import boundary_ring, masked_crop
from hair_pipeline.evaluation.statistics import Estimate, mean_by_person, missing

STAND_IN_SIDE, INCEPTION_SIDE = 128, 299
NAN = float("nan")


@dataclass
class Measurements:
    """What one model's pictures gave.

    Attributes:
        rows: one dict per picture, columns of per_image.parquet.
        real, made: ring features of own-style pictures, (D,) each; ring_people: their persons.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    real: list[np.ndarray] = field(default_factory=list)
    made: list[np.ndarray] = field(default_factory=list)
    ring_people: list[str] = field(default_factory=list)

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)


def measure(cases: Sequence[Case], drawings: Sequence[Drawing], judges: Judges, into: Measurements) -> None:
    """Measure a batch of pictures and append the rows."""
    rows = [_pixel_row(case, drawing) for case, drawing in zip(cases, drawings, strict=True)]
    _add_identity(rows, cases, drawings, judges)
    _add_lpips(rows, cases, drawings, judges)
    _add_classes(rows, cases, drawings, judges)
    into.rows += rows
    _add_rings(cases, drawings, judges, into)


def _pixel_row(case: Case, drawing: Drawing) -> dict[str, Any]:
    sample = case.sample
    return {
        "image_id": sample.image_id,
        "person": sample.person,
        "style_from": case.reference.image_id,
        "transfer": case.transfer,
        "seed": case.seed,
        "identity_raw": NAN,
        "identity": NAN,
        "lpips_hair": NAN,
        "curl_asked": case.curl,
        "curl_seen": None,
        "bangs_asked": case.bangs,
        "bangs_seen": None,
        "curl_seen_real": None,
        "halo": seam.halo(sample.image, drawing.final, case.repaint_mask),
        "rim_sharpness": seam.rim_sharpness(sample.image, drawing.final, case.repaint_mask, sample.hair_mask),
        "untouched_changed": seam.untouched_share_changed(sample.image, drawing.final, case.repaint_mask),
    }


def _add_identity(
    rows: list[dict[str, Any]], cases: Sequence[Case], drawings: Sequence[Drawing], judges: Judges
) -> None:
    recogniser = judges.recogniser.network
    boxes = {i: case.sample.box for i, case in enumerate(cases) if case.judged_identity and case.sample.box is not None}
    if recogniser is None or not boxes:
        return
    faces = {i: cases[i].sample.image for i in boxes}
    original = learned.face_embeddings(recogniser, list(faces.values()), list(boxes.values()), judges.device)
    places = {i: place for place, i in enumerate(boxes)}
    for column, pictures in (("identity_raw", [d.raw for d in drawings]), ("identity", [d.final for d in drawings])):
        chosen = {i: picture for i in boxes if (picture := pictures[i]) is not None}
        if not chosen:
            continue
        output = learned.face_embeddings(recogniser, list(chosen.values()), [boxes[i] for i in chosen], judges.device)
        values = learned.identity_similarity(original[[places[i] for i in chosen]], output)
        for i, value in zip(chosen, values, strict=True):
            rows[i][column] = float(value)


def _add_lpips(rows: list[dict[str, Any]], cases: Sequence[Case], drawings: Sequence[Drawing], judges: Judges) -> None:
    own = [i for i, case in enumerate(cases) if not case.transfer]
    if judges.perceptual.network is None or not own:
        return
    values = learned.hair_lpips(
        judges.perceptual.network,
        [cases[i].sample.image for i in own],
        [drawings[i].final for i in own],
        [cases[i].sample.hair_mask for i in own],
        judges.device,
    )
    for i, value in zip(own, values, strict=True):
        rows[i]["lpips_hair"] = float(value)


def _add_classes(
    rows: list[dict[str, Any]], cases: Sequence[Case], drawings: Sequence[Drawing], judges: Judges
) -> None:
    if judges.classifier.network is None:
        return
    seen = learned.predicted_classes(judges.classifier.network, [d.final for d in drawings], judges.device)
    real = learned.predicted_classes(judges.classifier.network, [c.sample.image for c in cases], judges.device)
    for i, row in enumerate(rows):
        row["curl_seen"], row["bangs_seen"] = int(seen["curl"][i]), int(seen["bangs"][i])
        row["curl_seen_real"] = int(real["curl"][i])


def _add_rings(cases: Sequence[Case], drawings: Sequence[Drawing], judges: Judges, into: Measurements) -> None:
    extractor = judges.extractor.network
    if extractor is None:
        return
    rings = {i: boundary_ring(c.sample.hair_mask, c.sample.face_mask) for i, c in enumerate(cases) if not c.transfer}
    chosen = [i for i, ring in rings.items() if ring.any()]
    if not chosen:
        return
    side = STAND_IN_SIDE if judges.extractor.stand_in else INCEPTION_SIDE
    real = [masked_crop(cases[i].sample.image, rings[i], side) for i in chosen]
    made = [masked_crop(drawings[i].final, rings[i], side) for i in chosen]
    into.real += list(distribution.extract(extractor, real, judges.device))
    into.made += list(distribution.extract(extractor, made, judges.device))
    into.ring_people += [cases[i].sample.person for i in chosen]


# --- summary ---


@dataclass(frozen=True)
class Result:
    """One metric of one model: its definition (renamed for a stand-in), the judge and the estimate."""

    metric: Metric
    key: str
    extractor: str | None
    note: str
    estimate: Estimate


def summarise(measured: Measurements, judges: Judges) -> dict[str, Result]:
    """Every metric of `METRICS`, by name; what could not be measured has a reason."""
    frame = measured.frame()
    return {metric.name: _result(metric, frame, measured, judges) for metric in METRICS}


def _result(metric: Metric, frame: pd.DataFrame, measured: Measurements, judges: Judges) -> Result:
    judge = _judge_of(metric.name, judges)
    shown, key, note = metric, metric.name, "" if judge is None else judge.note
    if judge is not None and judge.stand_in:
        shown, key = _renamed(metric), f"{metric.name}_stand_in"
    if judge is not None and judge.network is None:
        return Result(shown, key, None, note, missing(judge.reason))
    estimate = _estimate(metric.name, frame, measured)
    if (
        metric.name in ("frechet_ring", "kernel_ring")
        and estimate.measured
        and estimate.n < distribution.TRUSTED_IMAGES
    ):
        note = f"{note} Only N = {estimate.n} on both sides, below 2,000: compare with nothing but the base beside it."
    return Result(shown, key, None if judge is None else judge.name, note.strip(), estimate)


def _renamed(metric: Metric) -> Metric:
    """The metric under a name that does not promise the published network."""
    names = {"frechet_ring": "Fréchet distance", "kernel_ring": "Kernel distance", "lpips_hair": "perceptual distance"}
    if metric.name == "lpips_hair":
        title = "Hair-region perceptual distance (LPIPS with a stand-in trunk)"
    elif metric.name in names:
        title = f"{names[metric.name]} in the hair-skin ring (stand-in extractor)"
    else:
        title = f"{metric.title} (stand-in recogniser)"
    return replace(metric, title=title)


def _judge_of(name: str, judges: Judges) -> Judge[Any] | None:
    if name.startswith("identity"):
        return judges.recogniser
    if name == "lpips_hair":
        return judges.perceptual
    if name in ("frechet_ring", "kernel_ring"):
        return judges.extractor
    return judges.classifier if "accuracy" in name else None


def _estimate(name: str, frame: pd.DataFrame, measured: Measurements) -> Estimate:
    if frame.empty:
        return missing("no picture was made")
    if name in ("frechet_ring", "kernel_ring"):
        distance = distribution.frechet_distance if name == "frechet_ring" else distribution.kernel_distance
        if not measured.real:
            return missing("hair and skin meet in no picture")
        return distribution.set_distance(
            distance, np.stack(measured.real), np.stack(measured.made), measured.ring_people
        )
    own = frame[~frame["transfer"]]
    if name == "curl_accuracy":
        return _accuracy(own, "curl_seen", "curl_asked")
    if name == "bangs_accuracy":
        return _accuracy(own, "bangs_seen", "bangs_asked")
    if name == "curl_accuracy_real":
        return _accuracy(own, "curl_seen_real", "curl_asked")
    if name == "curl_accuracy_transfer":
        transfer = frame[frame["transfer"]]
        if transfer.empty:
            return missing("no other held-out person to take a style from")
        return _accuracy(transfer, "curl_seen", "curl_asked")
    why = {
        "identity_raw": "no face is reliable (blurred, missing or turned away), or only finished pictures are given",
        "identity": "no face is reliable (blurred, missing or turned away)",
        "lpips_hair": "no photo has a hair mask large enough",
    }
    rows = own if name == "lpips_hair" else frame
    return mean_by_person(
        rows[name].to_numpy(float), rows["person"].to_numpy(str), why_empty=why.get(name, "no picture allows it")
    )


def _accuracy(rows: pd.DataFrame, seen: str, asked: str) -> Estimate:
    hits = [
        NAN if pd.isna(a) or pd.isna(b) else float(int(a) == int(b))
        for a, b in zip(rows[seen], rows[asked], strict=True)
    ]
    return mean_by_person(hits, rows["person"].to_numpy(str), why_empty="the labels name no class to ask for")


def as_json(result: Result, baseline: Result | None) -> dict[str, Any]:
    """One entry of metrics.json."""
    metric, estimate = result.metric, result.estimate
    passed = None
    if metric.threshold is not None and estimate.value is not None:
        value = estimate.value
        passed = value >= metric.threshold if metric.direction == "higher" else value <= metric.threshold
    base = None if baseline is None or not baseline.estimate.measured else _numbers(baseline.estimate)
    return _numbers(estimate) | {
        "direction": metric.direction,
        "threshold": metric.threshold,
        "passed": passed,
        "extractor": result.extractor,
        "unit": metric.unit,
        "title": metric.title,
        "note": result.note,
        "baseline": base,
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
    stand_in = result.key != metric.name
    more = {
        "stand_in": stand_in,
        "digits": metric.digits,
        "explanation": metric.explanation,
        "source": metric.source,
        "name": metric.name,
    }
    return as_json(result, baseline) | more
