"""The A/B test's files: verdict.json, per_image.parquet, report.html, preview.jpg, and the blind review's.

Belongs here: what is written, and found again. Does not belong here: drawing and measuring (`ab_test`), the rule.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from hair_pipeline import files
from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation import pictures
from hair_pipeline.evaluation.ab_page import decision_numbers, decision_rows, earlier_looks, rule_text, warnings
from hair_pipeline.evaluation.ab_rule import Decision
from hair_pipeline.evaluation.blind_review import REVIEW_FOLDER, write_review
from hair_pipeline.evaluation.contenders import Contender
from hair_pipeline.evaluation.html import number, write_page
from hair_pipeline.evaluation.ledger import Ledger
from hair_pipeline.evaluation.results import Result, as_json, for_page, per_image
from hair_pipeline.evaluation.schema import SCHEMA, VerdictFile, checked
from hair_pipeline.profile import Profile
from hair_pipeline.training.runs import environment

SHOWN = (
    "lpips_hair",
    "identity_raw",
    "identity",
    "identity_second_raw",
    "psnr_hair",
    "ssim_hair",
    "psnr_background",
    "halo",
    "rim_sharpness",
    "untouched_changed",
)
GRID_ROWS = 40


@dataclass(frozen=True)
class VerdictResult:
    """A finished test.

    Attributes:
        verdict: approve, reject or inconclusive. reasons: why, one sentence each.
        folder: of the files. report_path: report.html. preview: JPEG of at most 20 KB.
        numbers: name -> value, None where not measured. data_version: content hash of inputs and verdict.
        id: of the test. version: of the new model.
    """

    verdict: str
    reasons: list[str]
    folder: Path
    report_path: Path
    numbers: dict[str, float | None]
    preview: Path
    data_version: str
    id: str
    version: str


@dataclass(frozen=True)
class Photos:
    """What the files say of the photos.

    Attributes:
        origin: where they come from. fingerprint: of their content. left_out: name -> why.
        failures: of how many the new model returned no usable picture.
    """

    origin: str
    fingerprint: str
    left_out: dict[str, str]
    failures: int


def reusable(folder: Path, identifier: str) -> VerdictResult | None:
    """The same test, finished before; its blind review may have been given away."""
    if not all((folder / name).exists() for name in ("verdict.json", "report.html", "preview.jpg")):
        return None
    try:
        data = files.read_json(folder / "verdict.json")
        VerdictFile.model_validate(data)
    except (PipelineError, ValidationError):
        return None
    return _result(folder, data) if data["id"] == identifier else None


def _result(folder: Path, data: dict[str, Any]) -> VerdictResult:
    """What a verdict.json says."""
    numbers: dict[str, float | None] = {name: entry["value"] for name, entry in data["numbers"].items()}
    numbers |= {f"{key}_new": entry["value"] for key, entry in data["metrics"].items()}
    numbers |= {f"{key}_old": (entry["baseline"] or {}).get("value") for key, entry in data["metrics"].items()}
    return VerdictResult(
        verdict=data["verdict"],
        reasons=data["reasons"],
        folder=folder,
        report_path=folder / "report.html",
        numbers=numbers,
        preview=folder / "preview.jpg",
        data_version=data["data_version"],
        id=data["id"],
        version=data["new"]["version"],
    )


def write_verdict(
    folder: Path,
    identifier: str,
    decision: Decision,
    identity: str,
    results: dict[str, dict[str, Result]],
    frames: dict[str, pd.DataFrame],
    contenders: dict[str, Contender],
    photos: Photos,
    ledger: Ledger,
    profile: Profile,
    *,
    first_opponent: bool,
    earlier: int,
) -> VerdictResult:
    """Write all files of the test; verdict.json last.

    Args:
        identity: column that the decision used: identity_raw or identity.
        results, frames, contenders: each by "old" and "new".
        first_opponent: whether the old model is what a first version is compared with.
        earlier: other tests with a verdict on the same two versions.
    """
    reasons = decision.reasons + earlier_looks(earlier)
    with files.atomic_path(folder / "per_image.parquet") as path:
        per_image(frames, results["new"]).to_parquet(path, index=False)
    new, old = contenders["new"], contenders["old"]
    metrics = {results["new"][n].key: as_json(results["new"][n], results["old"][n]) for n in SHOWN}
    made_at = datetime.now(UTC)
    people = int(frames["new"]["person"].nunique())
    from_raw = "before" if identity == "identity_raw" else "after"
    content = {
        "schema": SCHEMA,
        "id": identifier,
        "made_at": made_at.isoformat(timespec="seconds"),
        "verdict": decision.verdict,
        "reasons": reasons,
        "old": _side(old) | {"first_opponent": first_opponent},
        "new": _side(new),
        "photos": photos.origin,
        "images": len(frames["new"]),
        "people": decision.people,
        "failures": photos.failures,
        "earlier_verdicts": earlier,
        "left_out": photos.left_out,
        "identity_measured": f"{from_raw} paste-back",
        "numbers": decision_numbers(decision),
        "metrics": metrics,
        "rule": rule_text(profile.ab_test),
        "data_version": files.hash_bytes(identifier, decision.verdict, json.dumps(metrics, sort_keys=True)),
        "provenance": provenance(new, old, photos, profile),
    }
    rows = {name: {row["case"]: row for row in frame.to_dict("records")} for name, frame in frames.items()}
    keys = [key for key in rows["new"] if ledger.data_uri(key, "new")]
    _write_preview(keys, ledger, folder / "preview.jpg")
    write_review(folder, identifier, new.version, [(rows["new"][k]["image_id"], k) for k in keys], ledger)
    write_page(
        "ab.html.j2",
        folder / "report.html",
        id=identifier,
        new=new,
        old=old,
        images=len(frames["new"]),
        people=people,
        cases_from=photos.origin,
        earlier=earlier,
        made_at=made_at.strftime("%Y-%m-%d %H:%M UTC"),
        verdict=decision.verdict,
        reasons=reasons,
        sign_off=f"uv run hair-pipeline registry sign-off {new.version} --reviewer NAME --decision approve",
        review=f"{REVIEW_FOLDER}/review.html",
        warnings=warnings(results["new"], photos.origin, photos.left_out, people),
        decision=decision_rows(decision, from_raw, results["new"]["lpips_hair"].metric.title, profile.ab_test),
        metrics=[
            for_page(results["new"][name], results["old"][name])
            for name in SHOWN
            if "second" not in name or results["new"][name].extractor is not None
        ],
        rows=[_grid_row(key, rows, ledger) for key in keys[:GRID_ROWS]],
        seams=[_seam_row(key, rows, ledger) for key in _worst_halo(keys, rows["new"]) if ledger.data_uri(key, "seams")],
        left_out=photos.left_out,
        rule=content["rule"],
        provenance=content["provenance"],
    )
    files.write_json(folder / "verdict.json", checked(VerdictFile, content))
    return _result(folder, content)


def provenance(new: Contender, old: Contender, photos: Photos, profile: Profile) -> dict[str, str]:
    """What the verdict rests on. A registered version draws with settings of its own, whatever the profile's are."""

    def model(contender: Contender) -> str:
        drawn = "finished pictures" if contender.settings is None else contender.settings.sampler
        return f"{contender.label} ({contender.version}): {drawn}"

    return {
        "New": model(new),
        "Old": model(old),
        "Photos": f"{photos.origin}; content {photos.fingerprint[:16]}; the same seeds for both models",
        "Profile": f"{profile.name}, content {files.hash_bytes(profile.model_dump_json())[:16]}",
        "Code": str(environment()["git_commit"] or "not a git checkout"),
        "Configuration": profile.model_dump_json(),
    }


def _side(contender: Contender) -> dict[str, Any]:
    settings = None if contender.settings is None else contender.settings.model_dump(mode="json")
    return {"label": contender.label, "version": contender.version, "settings": settings}


def _write_preview(keys: list[str], ledger: Ledger, path: Path) -> None:
    cells = ("photo", "bald", "old", "new")
    sheet = [[image for cell in cells if (image := ledger.image(key, cell)) is not None] for key in keys[:3]]
    pictures.write_preview(sheet, path)


def _grid_row(key: str, rows: dict[str, dict[str, Any]], ledger: Ledger) -> dict[str, Any]:
    return {
        "image_id": rows["new"][key]["image_id"],
        "pictures": [ledger.data_uri(key, cell, pictures.THUMBNAIL_SIDE) for cell in ("photo", "bald", "old", "new")],
        "lines": _lines(rows["old"][key], rows["new"][key]),
    }


def _worst_halo(keys: list[str], rows: dict[str, Any], count: int = 8) -> list[str]:
    """The new model's most visible seams."""
    known = [key for key in keys if np.isfinite(rows[key]["halo"])]
    return sorted(known, key=lambda key: -abs(rows[key]["halo"]))[:count]


def _seam_row(key: str, rows: dict[str, dict[str, Any]], ledger: Ledger) -> dict[str, Any]:
    old, new = (number(rows[name][key]["halo"], 2) for name in ("old", "new"))
    return {"text": f"{rows['new'][key]['image_id']}: halo {old} → {new}", "picture": ledger.data_uri(key, "seams")}


def _lines(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    names = (("hair distance", "lpips_hair"), ("identity", "identity_raw"), ("halo", "halo"))
    return [
        f"{title} {number(old[column], 3)} → {number(new[column], 3)}"
        for title, column in names
        if np.isfinite(old[column]) and np.isfinite(new[column])
    ]
