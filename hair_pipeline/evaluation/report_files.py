"""The validation report's files: metrics.json, per_image.parquet, report.html, preview.jpg.

Belongs here: what is written, and found again. Does not belong here: drawing and measuring (`report`, `measure`), the
page's tables of earlier versions, worst cases and confusions (`report_tables`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hair_pipeline import files
from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation import pictures
from hair_pipeline.evaluation.cases import spread_over_people
from hair_pipeline.evaluation.html import number, write_page
from hair_pipeline.evaluation.judges import SAME_AS_LOSS
from hair_pipeline.evaluation.ledger import Ledger
from hair_pipeline.evaluation.metrics.distribution import TRUSTED_IMAGES
from hair_pipeline.evaluation.picture_settings import PictureSettings
from hair_pipeline.evaluation.report_tables import confusion, confusion_tables, trends, worst_cases
from hair_pipeline.evaluation.results import SET_METRICS, Result, as_json, for_page, per_image
from hair_pipeline.evaluation.schema import SCHEMA, MetricsFile, checked, read_metrics
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.runs import current, environment
from hair_pipeline.vocabulary import CURL_CLASSES

TILES = ("identity_raw", "lpips_hair", "curl_accuracy", "curl_accuracy_transfer", "halo")


@dataclass(frozen=True)
class ReportResult:
    """A finished report.

    Attributes:
        version: of the model. folder: of the report. report_path: report.html. preview: JPEG of at most 20 KB.
        numbers: metric key -> value, None where not measured.
        data_version: content hash of metrics and per-image table. reused: nothing had changed.
    """

    version: str
    folder: Path
    report_path: Path
    numbers: dict[str, float | None]
    preview: Path
    data_version: str
    reused: bool = False


def reusable(folder: Path, fingerprint: str) -> ReportResult | None:
    """The report in the folder, if it is whole and of this fingerprint."""
    if not all((folder / name).exists() for name in ("metrics.json", "report.html", "preview.jpg")):
        return None
    try:
        data = read_metrics(folder / "metrics.json")
    except PipelineError:
        return None
    if data.fingerprint != fingerprint:
        return None
    numbers = {key: entry.value for key, entry in data.metrics.items()}
    preview = folder / "preview.jpg"
    return ReportResult(data.version, folder, folder / "report.html", numbers, preview, data.data_version, True)


def write_pointer(folder: Path, version: str) -> None:
    """Make `folder` the current report: `reports/eval/current.json`, as for the A/B test."""
    files.write_json(folder.parent / "current.json", {"version": version, "folder": folder.name})


def shown_cases(rows: list[dict[str, Any]], grid_rows: int) -> set[str]:
    """Keys of the cases whose pictures the page shows: the first of each kind, and the worst by each metric."""
    if not rows:
        return set()
    frame = pd.DataFrame(rows)
    keys = {key for table in worst_cases(frame) for key in table.keys}
    return keys | {key for kind in (False, True) for key in _first(frame, kind, grid_rows)}


def _first(frame: pd.DataFrame, transfer: bool, count: int) -> list[str]:
    """Keys of the first cases of a kind, of as many people as there are: a person has up to 180 views."""
    rows = frame[frame["transfer"] == transfer]
    return [str(key) for key in rows["case"].iloc[spread_over_people(rows["person"], count)]]


def write_report(
    folder: Path,
    fingerprint: str,
    results: dict[str, dict[str, Result]],
    ledger: Ledger,
    left_out: dict[str, str],
    settings: Settings,
    profile: Profile,
) -> ReportResult:
    """Write all files of the report, metrics.json last, and the pointer."""
    frames = {name: pd.DataFrame(rows) for name, rows in ledger.rows.items()}
    metrics = {r.key: as_json(r, results["base"][name]) for name, r in results["model"].items()}
    with files.atomic_path(folder / "per_image.parquet") as path:
        per_image(frames, results["model"]).to_parquet(path, index=False)
    version = folder.name
    made_at = datetime.now(UTC)
    data_version = files.hash_bytes(fingerprint, json.dumps(metrics, sort_keys=True))
    images, people = (int(frames["model"][name].nunique()) for name in ("image_id", "person"))
    content = {
        "schema": SCHEMA,
        "version": version,
        "made_at": made_at.isoformat(timespec="seconds"),
        "fingerprint": fingerprint,
        "data_version": data_version,
        "images": images,
        "people": people,
        "left_out": left_out,
        "settings": PictureSettings.of(profile).model_dump(mode="json"),
        "warnings": _warnings(results["model"], people, left_out),
        "metrics": metrics,
        "confusion": confusion(frames["model"]),
        "provenance": _provenance(version, data_version, settings, profile),
    }
    preview = _write_preview(frames["model"], ledger, folder / "preview.jpg")
    report = _write_page(folder, content, results, frames["model"], ledger, made_at, profile)
    files.write_json(folder / "metrics.json", checked(MetricsFile, content))
    write_pointer(folder, version)
    numbers = {key: entry["value"] for key, entry in metrics.items()}
    return ReportResult(version, folder, report, numbers, preview, data_version)


def _write_page(
    folder: Path,
    content: dict[str, Any],
    results: dict[str, dict[str, Result]],
    frame: pd.DataFrame,
    ledger: Ledger,
    made_at: datetime,
    profile: Profile,
) -> Path:
    shown = [
        for_page(result, results["base"][name])
        for name, result in results["model"].items()
        if "second" not in name or result.extractor is not None
    ]
    rows = {str(row["case"]): {str(k): v for k, v in row.items()} for row in frame.to_dict("records")}
    names = {result.metric.name: result for result in results["model"].values()}
    return write_page(
        "eval.html.j2",
        folder / "report.html",
        version=content["version"],
        images=content["images"],
        people=content["people"],
        made_at=made_at.strftime("%Y-%m-%d %H:%M UTC"),
        warnings=content["warnings"],
        left_out=content["left_out"],
        tiles=[next(m for m in shown if m["name"] == name) for name in TILES],
        metrics=shown,
        trends=trends(folder.parent, content, {r.key: r for r in results["model"].values()}),
        confusions=confusion_tables(content["confusion"]),
        worst=[
            {
                "title": names[table.metric].metric.title,
                "cases": [
                    {
                        "text": f"{rows[key]['image_id']}: {number(value, names[table.metric].metric.digits)}",
                        "style": f"style of {rows[key]['style_from']}" if rows[key]["transfer"] else "",
                        "pictures": [ledger.data_uri(key, "photo"), ledger.data_uri(key, "model")],
                    }
                    for key, value in zip(table.keys, table.values, strict=True)
                ],
            }
            for table in worst_cases(frame)
        ],
        seams=[
            {"text": f"{rows[key]['image_id']}: halo {number(rows[key]['halo'], 2)}", "picture": picture}
            for key in _seam_cases(frame, profile.evaluation.grid_rows)
            if (picture := ledger.data_uri(key, "seams"))
        ],
        grids=_grids(frame, rows, ledger, profile.evaluation.grid_rows),
        provenance=content["provenance"],
    )


def _seam_cases(frame: pd.DataFrame, count: int) -> list[str]:
    """The pictures with the worst halo, then the first ones."""
    halo = next((table.keys for table in worst_cases(frame) if table.metric == "halo"), [])
    return list(dict.fromkeys([*halo[:count], *_first(frame, False, count)]))


def _write_preview(frame: pd.DataFrame, ledger: Ledger, path: Path) -> Path:
    keys = (_first(frame, False, 3) + _first(frame, True, 3))[:3]
    rows = [[ledger.image(key, cell) for cell in ("photo", "bald", "style", "model")] for key in keys]
    return pictures.write_preview([[image for image in row if image is not None] for row in rows], path)


def _grids(frame: pd.DataFrame, rows: dict[str, dict[str, Any]], ledger: Ledger, count: int) -> list[dict[str, Any]]:
    columns = {"photo": "Original", "bald": "Hair removed", "style": "Style reference", "model": "This model"}

    def grid(title: str, text: str, transfer: bool, columns: dict[str, str]) -> dict[str, Any]:
        return {
            "title": title,
            "text": text,
            "columns": list(columns.values()),
            "rows": [
                {
                    "image_id": rows[key]["image_id"],
                    "pictures": [ledger.data_uri(key, cell) for cell in columns],
                    "lines": _lines(rows[key]),
                }
                for key in _first(frame, transfer, count)
            ],
        }

    grids = [
        grid(
            "Own style",
            "The photo's own hair is asked for, so the original is the ground truth. Everything outside the feathered "
            "mask is the photo's own pixels.",
            False,
            columns | {"base": "Untrained base"},
        ),
        grid(
            "Another person's style",
            "The texture of another held-out person's hair, of another curl class where one was available, in this "
            "person's hair region. There is no ground truth.",
            True,
            columns | {"base": "Untrained base"},
        ),
    ]
    return [entry for entry in grids if entry["rows"]]


def _lines(row: dict[str, Any]) -> list[str]:
    lines = [f"person {row['person']}"]
    if row["transfer"]:
        lines.append(f"style of {row['style_from']}")
    if not pd.isna(row["curl_asked"]):
        seen = "" if pd.isna(row["curl_seen"]) else f", seen {CURL_CLASSES[int(row['curl_seen'])]}"
        lines.append(f"curl asked {CURL_CLASSES[int(row['curl_asked'])]}{seen}")
    for name, column in (("identity", "identity_raw"), ("hair distance", "lpips_hair"), ("halo", "halo")):
        if np.isfinite(row[column]):
            lines.append(f"{name} {number(row[column], 2)}")
    return lines


def _warnings(results: dict[str, Result], people: int, left_out: dict[str, str]) -> list[str]:
    found = []
    stand_ins = sorted({r.extractor for r in results.values() if r.key.endswith("_stand_in") and r.extractor})
    if stand_ins:
        found.append(
            f"Small networks stand in for published ones ({', '.join(stand_ins)}). Their numbers "
            "compare models within this report only and must not be set beside published LPIPS, FID or ArcFace values."
        )
    if results["identity_raw"].note.startswith(SAME_AS_LOSS):
        found.append(
            "Identity is judged by the recogniser that the identity loss trained against, so it flatters the model; "
            "set models.evaluation_recogniser to another one."
        )
    sets = [results[name].estimate.n for name in SET_METRICS if results[name].estimate.measured]
    if sets and min(sets) < TRUSTED_IMAGES:
        found.append(
            f"The distances between sets rest on N = {min(sets)} pictures on each side. Below {TRUSTED_IMAGES:,} the "
            "Fréchet distance is mostly bias; set it beside nothing but the base's."
        )
    if people < 10:
        found.append(f"Only {people} held-out people: the intervals are wide, and small differences mean nothing.")
    if left_out:
        names = ", ".join(f"{name} ({reason})" for name, reason in list(left_out.items())[:5])
        found.append(f"{len(left_out)} held-out photos are left out: {names}.")
    return found


def _provenance(version: str, data_version: str, settings: Settings, profile: Profile) -> dict[str, str]:
    stage2 = current("stage2", settings)
    about = environment()
    packages = ", ".join(f"{name} {number}" for name, number in about["packages"].items())
    return {
        "Model": f"Stage 2, run {stage2.run_id}, content {stage2.version}",
        "Trained on": stage2.data_version,
        "Report version": f"{version} / {data_version}",
        "Profile": f"{profile.name}, content {files.hash_bytes(profile.model_dump_json())[:16]}",
        "Base": profile.models.base,
        "Sampler": f"{PictureSettings.of(profile).sampler}, seed {profile.evaluation.seed}",
        "Catalog": files.hash_file(settings.catalog_path),
        "Code": str(about["git_commit"] or "not a git checkout"),
        "Packages": f"Python {about['python']}, {packages}",
        "Configuration": profile.model_dump_json(),
    }
