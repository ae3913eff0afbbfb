"""From drawn pictures to rows of numbers, and from rows to metrics with intervals.

Belongs here: which metric applies to which case. Does not belong here: the metrics' formulas (`metrics`), drawing
(`contenders`), and the pages (`html`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from hair_pipeline.evaluation.cases import Case
from hair_pipeline.evaluation.contenders import Drawing
from hair_pipeline.evaluation.judges import Judge, Judges
from hair_pipeline.evaluation.leakage import old_curl_excess
from hair_pipeline.evaluation.metrics import distribution, learned, pixels, seam
from hair_pipeline.evaluation.metrics.definitions import METRICS, Metric
from hair_pipeline.evaluation.regions import boundary_ring, masked_crop
from hair_pipeline.evaluation.statistics import Estimate, mean_by_person, missing
from hair_pipeline.processing.leakage import MIN_PEOPLE, MIN_PEOPLE_PER_CLASS, Leakage

STAND_IN_SIDE, INCEPTION_SIDE = 128, 299
NAN = float("nan")
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


@dataclass
class Measurements:
    """What one model's pictures gave.

    Attributes:
        rows: one dict per picture, columns of per_image.parquet.
        features: of own-style pictures, (n, D) each: `<region>_real` and `<region>_made`, with `<region>_people`
            (n,), for the regions ring and image.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    features: dict[str, np.ndarray] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)


def measure(cases: Sequence[Case], drawn: Mapping[str, Sequence[Drawing]], judges: Judges) -> dict[str, Measurements]:
    """Measure a batch of pictures that one or several models drew.

    Args:
        drawn: model -> one drawing per case.
    """
    real = _look_at_photos(cases, judges)
    return {name: _measure_one(cases, drawings, judges, real) for name, drawings in drawn.items()}


@dataclass(frozen=True)
class _Photos:
    """What the judges see in the photos themselves, the same for every model.

    Attributes:
        boxes: place in the batch -> face box, for reliable faces.
        faces: column suffix -> embeddings of these faces.
        curl: class seen in each photo, or None. own: places of own-style cases.
        regions: region -> (places, features).
    """

    boxes: dict[int, np.ndarray]
    faces: dict[str, np.ndarray]
    curl: np.ndarray | None
    regions: dict[str, tuple[list[int], np.ndarray]]


def _look_at_photos(cases: Sequence[Case], judges: Judges) -> _Photos:
    boxes = {i: case.sample.box for i, case in enumerate(cases) if case.judged_identity and case.sample.box is not None}
    photos = [cases[i].sample.image for i in boxes]
    faces = {
        suffix: learned.face_embeddings(network, photos, list(boxes.values()), judges.device)
        for suffix, network in _recognisers(judges).items()
        if boxes
    }
    classifier = judges.classifier.network
    curl = None
    if classifier is not None:
        curl = learned.predicted_classes(classifier, [c.sample.image for c in cases], judges.device)["curl"]
    regions = {}
    if judges.extractor.network is not None:
        for region in ("ring", "image"):
            places = [i for i, case in enumerate(cases) if not case.transfer and _mask_of(region, case).any()]
            if places:
                crops = [_crop(region, cases[i], cases[i].sample.image, judges) for i in places]
                regions[region] = places, distribution.extract(judges.extractor.network, crops, judges.device)
    return _Photos(boxes, faces, curl, regions)


def _recognisers(judges: Judges) -> dict[str, Any]:
    """Column suffix -> recogniser, of those that are there."""
    known = {"": judges.recogniser.network, "_second": judges.second.network}
    return {suffix: network for suffix, network in known.items() if network is not None}


def _mask_of(region: str, case: Case) -> np.ndarray:
    if region == "image":
        return np.ones_like(case.sample.hair_mask)
    return boundary_ring(case.sample.hair_mask, case.sample.face_mask)


def _crop(region: str, case: Case, picture: np.ndarray, judges: Judges) -> np.ndarray:
    side = STAND_IN_SIDE if judges.extractor.stand_in else INCEPTION_SIDE
    return masked_crop(picture, _mask_of(region, case), side)


def _measure_one(cases: Sequence[Case], drawings: Sequence[Drawing], judges: Judges, real: _Photos) -> Measurements:
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy and scipy let go of the interpreter
        rows = list(pool.map(_pixel_row, cases, drawings))
    _add_identity(rows, drawings, judges, real)
    _add_lpips(rows, cases, drawings, judges)
    _add_classes(rows, drawings, judges, real)
    features = {}
    for region, (places, values) in real.regions.items():
        crops = [_crop(region, cases[i], drawings[i].final, judges) for i in places]
        features[f"{region}_real"] = values
        features[f"{region}_made"] = distribution.extract(judges.extractor.network, crops, judges.device)
        features[f"{region}_people"] = np.array([cases[i].sample.person for i in places])
    return Measurements(rows, features)


def _pixel_row(case: Case, drawing: Drawing) -> dict[str, Any]:
    sample = case.sample
    row: dict[str, Any] = {
        "case": case.key,
        "image_id": sample.image_id,
        "person": sample.person,
        "style_from": case.reference.image_id,
        "transfer": case.transfer,
        "seed": case.seed,
        "identity_raw": NAN,
        "identity": NAN,
        "identity_second_raw": NAN,
        "identity_second": NAN,
        "lpips_hair": NAN,
        "psnr_hair": NAN,
        "ssim_hair": NAN,
        "own_curl": case.own_curl,
        "curl_asked": case.curl,
        "curl_seen": None,
        "bangs_asked": case.bangs,
        "bangs_seen": None,
        "curl_seen_real": None,
        "leakage_swap": NAN,
        "halo": seam.halo(sample.image, drawing.final, case.repaint_mask),
        "rim_sharpness": seam.rim_sharpness(sample.image, drawing.final, case.repaint_mask, sample.hair_mask),
        "untouched_changed": seam.untouched_share_changed(sample.image, drawing.final, case.repaint_mask),
    }
    if not case.transfer:
        row["psnr_hair"] = pixels.psnr(sample.image, drawing.final, sample.hair_mask)
        row["ssim_hair"] = pixels.ssim(pixels.similarity_map(sample.image, drawing.final), sample.hair_mask)
    model_own = drawing.final if drawing.raw is None else drawing.raw
    background = ~(case.repaint_mask | sample.face_mask)
    row["psnr_background"] = pixels.psnr(sample.image, model_own, background)
    row["ssim_background"] = pixels.ssim(pixels.similarity_map(sample.image, model_own), background)
    return row


def _add_identity(rows: list[dict[str, Any]], drawings: Sequence[Drawing], judges: Judges, real: _Photos) -> None:
    """The cosine of every reliable face, by each recogniser; embeddings of different ones never meet."""
    if not real.boxes:
        return
    places = {i: place for place, i in enumerate(real.boxes)}
    for suffix, network in _recognisers(judges).items():
        columns: dict[str, list[np.ndarray | None]] = {
            f"identity{suffix}_raw": [d.raw for d in drawings],
            f"identity{suffix}": [d.final for d in drawings],
        }
        for column, pictures in columns.items():
            chosen = {i: picture for i in real.boxes if (picture := pictures[i]) is not None}
            if not chosen:
                continue
            boxes = [real.boxes[i] for i in chosen]
            output = learned.face_embeddings(network, list(chosen.values()), boxes, judges.device)
            values = learned.identity_similarity(real.faces[suffix][[places[i] for i in chosen]], output)
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


def _add_classes(rows: list[dict[str, Any]], drawings: Sequence[Drawing], judges: Judges, real: _Photos) -> None:
    if judges.classifier.network is None or real.curl is None:
        return
    seen = learned.predicted_classes(judges.classifier.network, [d.final for d in drawings], judges.device)
    for i, row in enumerate(rows):
        row["curl_seen"], row["bangs_seen"] = int(seen["curl"][i]), int(seen["bangs"][i])
        row["curl_seen_real"] = int(real.curl[i])


# --- summary ---


@dataclass(frozen=True)
class Result:
    """One metric of one model: its definition (renamed for a stand-in), the judge and the estimate."""

    metric: Metric
    key: str
    extractor: str | None
    note: str
    estimate: Estimate


def summarise(measured: Measurements, judges: Judges, bald: Leakage | None = None) -> dict[str, Result]:
    """Every metric of `METRICS`, by name; what could not be measured has a reason.

    Args:
        bald: what the bald images on disk give away, where that was looked at.
    """
    frame = measured.frame()
    return {
        metric.name: _bald_result(metric, bald)
        if metric.name.startswith(BALD_PROBE)
        else _result(metric, frame, measured, judges)
        for metric in METRICS
    }


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
        return _set_estimate(name, measured)
    if name == "leakage_transfer":
        return old_curl_excess(frame)
    if name.endswith("_transfer") and not frame["transfer"].any():
        return missing("no other held-out person to take a style from")
    why = {
        "identity_raw": "no face is reliable (blurred, missing or turned away), or only finished pictures are given",
        "identity": "no face is reliable (blurred, missing or turned away)",
        "lpips_hair": "no photo has a hair mask large enough",
        "leakage_swap": "no transfer between two people could be drawn",
    }
    reason = "the labels name no class to ask for" if name in ACCURACIES else "no picture allows it"
    values = values_of(name, frame)
    return mean_by_person(values, frame["person"].to_numpy(str), why_empty=why.get(name, reason))


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


def _set_estimate(name: str, measured: Measurements) -> Estimate:
    region, distance = SET_METRICS[name]
    real, made = measured.features.get(f"{region}_real"), measured.features.get(f"{region}_made")
    if real is None or made is None:
        return missing("hair and skin meet in no picture" if region == "ring" else "no picture was made")
    people = measured.features[f"{region}_people"].tolist()
    return distribution.set_distance(distance, real.astype(np.float64), made.astype(np.float64), people)


def as_json(result: Result, baseline: Result | None) -> dict[str, Any]:
    """One entry of metrics.json; see `schema.MetricEntry`."""
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
    more = {
        "stand_in": result.key != metric.name,
        "digits": metric.digits,
        "explanation": metric.explanation,
        "source": metric.source,
        "name": metric.name,
    }
    return as_json(result, baseline) | more
