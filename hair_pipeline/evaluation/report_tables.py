"""Tables of the validation report: worst cases per metric, confusions, earlier versions.

Belongs here: choosing and counting, on the per-image table and the files of earlier reports. Does not belong here:
pictures and pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.html import number, sparkline
from hair_pipeline.evaluation.metrics.definitions import METRICS
from hair_pipeline.evaluation.results import ACCURACIES, Result, values_of
from hair_pipeline.evaluation.schema import MetricsFile, read_metrics
from hair_pipeline.vocabulary import CURL_CLASSES

WORST = 20
TRENDS = 6
"""Earlier versions shown."""
CLASSES = {"curl": CURL_CLASSES, "bangs": ("no bangs", "bangs")}


@dataclass(frozen=True)
class WorstCases:
    """The worst cases by one metric, worst first; at most `WORST`."""

    metric: str
    keys: list[str]
    values: list[float]


def worst_cases(frame: pd.DataFrame) -> list[WorstCases]:
    """For every metric that has a value per picture: the worst; of an accuracy, only those seen wrong.

    A metric by which no picture is less than perfect is left out.
    """
    tables = []
    for metric in METRICS:
        of_pictures = metric.name in frame or metric.name in ACCURACIES
        if not of_pictures or metric.name == "curl_accuracy_real":
            continue
        values = values_of(metric.name, frame)
        badness = {"higher": -values, "lower": values, "zero": np.abs(values)}[metric.direction]
        perfect = {"higher": -1.0, "lower": 0.0, "zero": 0.0}[metric.direction]
        order = [i for i in np.argsort(-badness, kind="stable") if np.isfinite(badness[i]) and badness[i] > perfect]
        if "psnr" in metric.name:
            order = [i for i in np.argsort(values, kind="stable") if np.isfinite(values[i])]
        if order:
            chosen = order[:WORST]
            keys = [str(frame["case"].iloc[i]) for i in chosen]
            tables.append(WorstCases(metric.name, keys, [float(values[i]) for i in chosen]))
    return tables


def confusion(frame: pd.DataFrame) -> dict[str, list[list[int]]]:
    """Metric name -> counts, rows by class asked for, columns by class seen."""
    found = {}
    for kind, classes in CLASSES.items():
        for name, transfer in ((f"{kind}_accuracy", False), (f"{kind}_accuracy_transfer", True)):
            rows = frame[frame["transfer"] == transfer].dropna(subset=[f"{kind}_asked", f"{kind}_seen"])
            if len(rows):
                counts = np.zeros((len(classes), len(classes)), int)
                np.add.at(counts, (rows[f"{kind}_asked"].astype(int), rows[f"{kind}_seen"].astype(int)), 1)
                found[name] = counts.tolist()
    return found


def confusion_tables(counts: dict[str, list[list[int]]]) -> list[dict[str, Any]]:
    """For the page: title, class names, and rows of {asked, cells of {count, share}, hits}."""
    tables = []
    for name, matrix in counts.items():
        classes = CLASSES[name.split("_", 1)[0]]
        title = next(metric.title for metric in METRICS if metric.name == name)
        rows = []
        for asked, line in zip(classes, matrix, strict=True):
            total = sum(line)
            cells = [{"count": count, "share": count / total if total else 0.0} for count in line]
            rows.append({"asked": asked, "cells": cells, "total": total})
        tables.append({"title": title, "classes": classes, "rows": rows})
    return tables


def trends(folder: Path, content: dict[str, Any], results: dict[str, Result]) -> dict[str, Any] | None:
    """Earlier versions beside this one.

    Args:
        folder: `reports/eval`. content: of this version's metrics.json. results: metric key -> result.

    Returns:
        {"versions": [{name, made_at, other_photos}], "rows": [{title, numbers, line}]}, or None without an earlier
        version. Values by another judge are left out: they cannot be compared.
    """
    earlier = _earlier(folder, content["version"])
    if not earlier:
        return None
    rows = []
    for key, entry in content["metrics"].items():
        digits = results[key].metric.digits
        past = [data.metrics.get(key) for data in earlier]
        values = [p.value if p is not None and p.extractor == entry["extractor"] else None for p in past]
        if entry["value"] is None or all(value is None for value in values):
            continue
        values.append(entry["value"])
        rows.append(
            {"title": entry["title"], "numbers": [number(v, digits) for v in values], "line": sparkline(values)}
        )
    catalog = content["provenance"]["Catalog"]
    versions = [
        {"name": d.version, "made_at": d.made_at[:10], "other_photos": d.provenance.get("Catalog") != catalog}
        for d in earlier
    ]
    versions.append({"name": content["version"], "made_at": content["made_at"][:10], "other_photos": False})
    return {"versions": versions, "rows": rows}


def _earlier(folder: Path, version: str) -> list[MetricsFile]:
    """The last reports of other versions, oldest first; those of another schema are left out."""
    found = []
    for path in folder.glob("*/metrics.json"):
        if path.parent.name == version or path.parent.name.startswith("."):
            continue
        try:
            found.append(read_metrics(path))
        except PipelineError:
            continue
    return sorted(found, key=lambda data: data.made_at)[-TRENDS:]
