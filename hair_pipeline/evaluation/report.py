"""The validation report: held-out people, the current Stage 2 model, the untrained base beside it.

Belongs here: the run of the report from catalog to files. Does not belong here: metrics, pages, the A/B test.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from hair_pipeline import files
from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation import pictures
from hair_pipeline.evaluation.cases import Case, ValidationPlan, load_cases, plan_validation
from hair_pipeline.evaluation.contenders import Contender, Drawing, ModelContender, stage2_current, untrained
from hair_pipeline.evaluation.html import number, write_page
from hair_pipeline.evaluation.judges import Judges, judges_version, load_judges
from hair_pipeline.evaluation.measure import Measurements, Result, as_json, for_page, measure, summarise
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.data import VectorTable, read_reliable_identities, read_style_vectors
from hair_pipeline.training.runs import current, environment
from hair_pipeline.vocabulary import CURL_CLASSES

SCHEMA = 1
TILES = ("identity_raw", "lpips_hair", "curl_accuracy", "curl_accuracy_transfer", "halo")


@dataclass(frozen=True)
class EvalResult:
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


@dataclass
class _Gallery:
    """The thumbnails kept for the page, at most `limit` rows per kind."""

    limit: int
    rows: dict[bool, list[dict[str, Any]]]
    preview: list[list[np.ndarray]]

    def wants(self, case: Case) -> bool:
        return len(self.rows[case.transfer]) < self.limit


def evaluate(settings: Settings, profile: Profile) -> EvalResult:
    """Draw every held-out, Stage 2 eligible photo with its own and with another person's style, and measure.

    Writes `reports/eval/<version>/{metrics.json,per_image.parquet,report.html,preview.jpg}`, metrics.json last, and
    the pointer `reports/eval/current.json`. A report of the same model, data and settings is reused.

    Raises:
        PipelineError: Stage 2 is not trained, or no held-out photo can be evaluated.
    """
    catalog = read_catalog(settings.catalog_path)
    styles = read_style_vectors(settings.processed / "style_vectors")
    identities = read_reliable_identities(settings.processed / "identity_embeddings")
    plan = plan_validation(catalog, styles, profile.evaluation.max_images)
    model = current("stage2", settings)
    fingerprint = _fingerprint(model.version, plan, settings, profile)
    folder = settings.reports / "eval" / model.version[:12]
    done = _reusable(folder, fingerprint)
    if done is not None:
        _write_pointer(folder, done.version)
        return done
    if plan.rows.empty:
        raise PipelineError(
            "no held-out photo can be evaluated: none has both a face (Stage 2) and a style vector",
            file=settings.catalog_path,
            remedy="look at split, stage2 and stage2_reason in the catalog; more people or front views are needed",
        )
    judges = load_judges(settings, profile)
    contenders = {"model": stage2_current(settings, profile, styles), "base": untrained(settings, profile)}
    measured = {name: Measurements() for name in contenders}
    gallery = _Gallery(profile.evaluation.grid_rows, {False: [], True: []}, [])
    left_out = dict(plan.left_out)
    _run(plan, identities, contenders, measured, judges, gallery, left_out, settings, profile)
    results = {name: summarise(values, judges) for name, values in measured.items()}
    return _write(folder, fingerprint, plan, results, measured, gallery, left_out, contenders, settings, profile)


def _run(
    plan: ValidationPlan,
    identities: VectorTable,
    contenders: dict[str, ModelContender],
    measured: dict[str, Measurements],
    judges: Judges,
    gallery: _Gallery,
    left_out: dict[str, str],
    settings: Settings,
    profile: Profile,
) -> None:
    """Draw and measure batch by batch."""
    own = [(index, index) for index in range(len(plan.rows))]
    transfer = [(index, donor) for index, donor in enumerate(plan.donors) if donor is not None]
    with tqdm(total=len(own) + len(transfer), desc="evaluate", unit="image") as bar:
        for pairs, names in ((own, ("model", "base")), (transfer, ("model",))):
            for cases in load_cases(plan, pairs, identities, settings, profile, left_out):
                drawn = {name: _draw(contenders[name], cases) for name in names}
                for name, drawings in drawn.items():
                    measure(cases, drawings, judges, measured[name])
                _keep_pictures(gallery, cases, drawn, measured["model"].rows[-len(cases) :])
                bar.update(len(cases))


def _draw(contender: Contender, cases: list[Case]) -> list[Drawing]:
    drawings = contender.draw(cases)
    made = [drawing for drawing in drawings if isinstance(drawing, Drawing)]
    if len(made) < len(drawings):
        raise PipelineError(next(d for d in drawings if isinstance(d, str)))
    return made


def _keep_pictures(
    gallery: _Gallery, cases: list[Case], drawn: dict[str, list[Drawing]], rows: list[dict[str, Any]]
) -> None:
    for i, case in enumerate(cases):
        if not gallery.wants(case):
            continue
        output = drawn["model"][i].final
        cells = [case.sample.image, case.bald, hair_on_gray(case), output]
        if "base" in drawn:
            cells.append(drawn["base"][i].final)
        row = rows[i]
        gallery.rows[case.transfer].append(
            {"image_id": case.sample.image_id, "pictures": [pictures.data_uri(c) for c in cells], "lines": _lines(row)}
        )
        if len(gallery.preview) < 3:
            gallery.preview.append(cells[:4])


def hair_on_gray(case: Case) -> np.ndarray:
    """The reference's hair alone, (S, S, 3) uint8."""
    reference = case.reference
    return np.where(reference.hair_mask[..., None], reference.image, np.uint8(235))


def _lines(row: dict[str, Any]) -> list[str]:
    lines = [f"person {row['person']}"]
    if row["transfer"]:
        lines.append(f"style of {row['style_from']}")
    if row["curl_asked"] is not None:
        seen = "" if row["curl_seen"] is None else f", seen {CURL_CLASSES[row['curl_seen']]}"
        lines.append(f"curl asked {CURL_CLASSES[row['curl_asked']]}{seen}")
    for name, column in (("identity", "identity_raw"), ("hair distance", "lpips_hair"), ("halo", "halo")):
        if np.isfinite(row[column]):
            lines.append(f"{name} {number(row[column], 2)}")
    return lines


def _fingerprint(version: str, plan: ValidationPlan, settings: Settings, profile: Profile) -> str:
    """Over everything the report depends on: model, photos, judges and settings."""
    return files.hash_bytes(
        str(SCHEMA),
        version,
        json.dumps(plan.rows[["image_id", "content_hash"]].to_numpy().tolist()),
        judges_version(settings, profile),
        profile.evaluation.model_dump_json(),
        profile.processing.model_dump_json(),
    )


def _reusable(folder: Path, fingerprint: str) -> EvalResult | None:
    path = folder / "metrics.json"
    if not path.exists() or not all((folder / name).exists() for name in ("report.html", "preview.jpg")):
        return None
    data = files.read_json(path)
    if data.get("fingerprint") != fingerprint:
        return None
    numbers = {key: entry["value"] for key, entry in data["metrics"].items()}
    preview = folder / "preview.jpg"
    return EvalResult(data["version"], folder, folder / "report.html", numbers, preview, data["data_version"], True)


def _write(
    folder: Path,
    fingerprint: str,
    plan: ValidationPlan,
    results: dict[str, dict[str, Result]],
    measured: dict[str, Measurements],
    gallery: _Gallery,
    left_out: dict[str, str],
    contenders: dict[str, ModelContender],
    settings: Settings,
    profile: Profile,
) -> EvalResult:
    """Write all files of the report."""
    shown = [for_page(result, results["base"][name]) for name, result in results["model"].items()]
    metrics = {r.key: as_json(r, results["base"][name]) for name, r in results["model"].items()}
    frame = pd.concat([values.frame().assign(model=name) for name, values in measured.items()], ignore_index=True)
    with files.atomic_path(folder / "per_image.parquet") as path:
        frame.to_parquet(path, index=False)
    version = contenders["model"].version
    data_version = files.hash_bytes(fingerprint, json.dumps(metrics, sort_keys=True))
    provenance = _provenance(version, data_version, settings, profile)
    people = int(plan.rows["source"].nunique())
    warnings = _warnings(results["model"], people, left_out)
    preview = pictures.write_preview(gallery.preview, folder / "preview.jpg")
    report = write_page(
        "eval.html.j2",
        folder / "report.html",
        version=version,
        images=len(plan.rows),
        people=people,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        warnings=warnings,
        tiles=[next(m for m in shown if m["name"] == name) for name in TILES],
        metrics=shown,
        grids=_grids(gallery),
        provenance=provenance,
    )
    files.write_json(
        folder / "metrics.json",
        {
            "schema": SCHEMA,
            "version": version,
            "fingerprint": fingerprint,
            "data_version": data_version,
            "images": len(plan.rows),
            "people": people,
            "left_out": left_out,
            "warnings": warnings,
            "metrics": metrics,
            "provenance": provenance,
        },
    )
    _write_pointer(folder, version)
    numbers = {key: entry["value"] for key, entry in metrics.items()}
    return EvalResult(version, folder, report, numbers, preview, data_version)


def _write_pointer(folder: Path, version: str) -> None:
    """Make `folder` the current report: `reports/eval/current.json`, as for the A/B test."""
    files.write_json(folder.parent / "current.json", {"version": version, "folder": folder.name})


def _grids(gallery: _Gallery) -> list[dict[str, Any]]:
    columns = ["Original", "Hair removed", "Style reference", "This model"]
    grids = [
        {
            "title": "Own style",
            "text": "The photo's own hair is asked for, so the original is the ground truth. Everything outside the "
            "feathered mask is the photo's own pixels.",
            "columns": [*columns, "Untrained base"],
            "rows": gallery.rows[False],
        },
        {
            "title": "Another person's style",
            "text": "The texture of another held-out person's hair, of another curl class where one was available, "
            "in this person's hair region. There is no ground truth.",
            "columns": columns,
            "rows": gallery.rows[True],
        },
    ]
    return [grid for grid in grids if grid["rows"]]


def _warnings(results: dict[str, Result], people: int, left_out: dict[str, str]) -> list[str]:
    found = []
    stand_ins = sorted({r.extractor for r in results.values() if r.key.endswith("_stand_in") and r.extractor})
    if stand_ins:
        found.append(
            f"Small networks trained on the inputs stand in for published ones ({', '.join(stand_ins)}). Their numbers "
            "compare models within this report only and must not be set beside published LPIPS, FID or ArcFace values."
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
    config = profile.evaluation
    packages = ", ".join(f"{name} {number}" for name, number in about["packages"].items())
    return {
        "Model": f"Stage 2, run {stage2.run_id}, content {stage2.version}",
        "Trained on": stage2.data_version,
        "Report version": f"{version} / {data_version}",
        "Profile": profile.name,
        "Base": profile.models.base,
        "Sampler": f"{config.scheduler}, {config.steps} steps, guidance {config.guidance_scale}, seed {config.seed}, "
        f"{profile.stage2.resolution} x {profile.stage2.resolution} pixels",
        "Catalog": files.hash_file(settings.catalog_path),
        "Code": str(about["git_commit"] or "not a git checkout"),
        "Packages": f"Python {about['python']}, {packages}",
    }
