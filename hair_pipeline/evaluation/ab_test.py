"""The A/B test: an old and a new model draw the same photos; the rule of `ab_rule` decides.

Belongs here: the run of the test from customers to files. Does not belong here: the rule, the contenders, sign-off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
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
from hair_pipeline.evaluation.ab_page import decision_numbers, decision_rows, rule_text, warnings
from hair_pipeline.evaluation.ab_rule import Decision, decide
from hair_pipeline.evaluation.cases import Case, load_cases, make_case, plan_validation
from hair_pipeline.evaluation.contenders import Contender, Drawing, opponent, resolve
from hair_pipeline.evaluation.html import number, write_page
from hair_pipeline.evaluation.judges import Judges, judges_version, load_judges
from hair_pipeline.evaluation.measure import Measurements, Result, as_json, for_page, measure, summarise
from hair_pipeline.evaluation.verdicts import write_pointer
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.customers import read_customers
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.data import read_reliable_identities, read_style_vectors
from hair_pipeline.training.runs import environment

SCHEMA = 1
SHOWN = ("lpips_hair", "identity_raw", "identity", "halo", "rim_sharpness", "untouched_changed")
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
class _Cases:
    """What is drawn, and whose photos these are."""

    total: int
    batches: Iterator[list[Case]]
    origin: str
    left_out: dict[str, str]
    fingerprint: str


def run_ab_test(
    customers: Path | None, old: str, new: str, out: Path, settings: Settings, profile: Profile
) -> VerdictResult:
    """Compare two models on the same photos, masks, style references (each person's own hair) and seeds.

    Args:
        customers: folder of photos with training_face's outputs; None takes the held-out validation people, and the
            verdict says so.
        old, new: SPECs of `contenders`.
        out: folder for verdict.json, per_image.parquet, report.html, preview.jpg. If it is `reports/ab` of the
            training root, a subfolder named by the test's id is made there and `current.json` points to it: that
            is the verdict which release reads.

    Raises:
        PipelineError: a SPEC or the customers cannot be read, or neither model made a picture.
    """
    candidate = resolve(new, settings, profile)
    other = opponent(candidate, settings) if old == "production" else old
    contenders = {"old": resolve(other, settings, profile), "new": candidate}
    cases = _customer_cases(customers, settings, profile) if customers else _validation_cases(settings, profile)
    identifier = _identifier(contenders, cases, judges_version(settings, profile), profile)
    managed = out.absolute() == (settings.reports / "ab").absolute()
    folder = out / identifier if managed else out
    done = _reusable(folder, identifier)
    if done is not None:
        if managed:
            write_pointer(out, identifier, done.version, done.verdict, folder)
        return done
    judges = load_judges(settings, profile, sets=False)
    measured = {name: Measurements() for name in contenders}
    rows: list[dict[str, Any]] = []
    sheet: list[list[np.ndarray]] = []
    with tqdm(total=cases.total, desc="A/B test", unit="image") as bar:
        for batch in cases.batches:
            _run_batch(batch, contenders, judges, measured, cases.left_out, rows, sheet)
            bar.update(len(batch))
    if not measured["new"].rows:
        raise PipelineError(
            "no photo was drawn by both models",
            file=customers or settings.catalog_path,
            remedy="; ".join(f"{name}: {reason}" for name, reason in list(cases.left_out.items())[:3]) or "add photos",
        )
    frames = {name: values.frame() for name, values in measured.items()}
    identity = _identity_column(frames)
    decision = decide(
        frames["new"]["person"].to_numpy(str),
        frames["old"]["lpips_hair"].to_numpy(float),
        frames["new"]["lpips_hair"].to_numpy(float),
        frames["old"][identity].to_numpy(float),
        frames["new"][identity].to_numpy(float),
        profile.ab_test,
    )
    results = {name: summarise(values, judges) for name, values in measured.items()}
    result = _write(folder, identifier, decision, identity, results, frames, contenders, cases, rows, sheet, profile)
    if managed:
        write_pointer(out, identifier, contenders["new"].version, decision.verdict, folder)
    return result


def _customer_cases(folder: Path, settings: Settings, profile: Profile) -> _Cases:
    customers = read_customers(folder, settings, profile.processing.size)
    left_out = dict(customers.missing)
    left_out |= {f"{name}, identity only": reason for name, reason in customers.no_identity.items()}
    samples = customers.samples

    def batches() -> Iterator[list[Case]]:
        size = profile.evaluation.batch_size
        for start in range(0, len(samples), size):
            chunk = samples[start : start + size]
            yield [make_case(s, s, customers.embeddings.get(s.image_id), (None, None), profile) for s in chunk]

    fingerprint = files.hash_bytes(*(part for s in samples for part in (s.image_id, s.image.tobytes())))
    return _Cases(len(samples), batches(), f"customers in {folder.name}", left_out, fingerprint)


def _validation_cases(settings: Settings, profile: Profile) -> _Cases:
    styles = read_style_vectors(settings.processed / "style_vectors")
    identities = read_reliable_identities(settings.processed / "identity_embeddings")
    plan = plan_validation(read_catalog(settings.catalog_path), styles, profile.evaluation.max_images)
    left_out = dict(plan.left_out)
    pairs = [(index, index) for index in range(len(plan.rows))]
    fingerprint = files.hash_bytes(json.dumps(plan.rows[["image_id", "content_hash"]].to_numpy().tolist()))
    batches = load_cases(plan, pairs, identities, settings, profile, left_out)
    origin = "held-out validation people, because no customers folder is set"
    return _Cases(len(pairs), batches, origin, left_out, fingerprint)


def _identifier(contenders: dict[str, Contender], cases: _Cases, judges: str, profile: Profile) -> str:
    """12 hex digits over both models, the photos, the judges and the settings."""
    return files.hash_bytes(
        str(SCHEMA),
        contenders["old"].version,
        contenders["new"].version,
        cases.fingerprint,
        profile.ab_test.model_dump_json(),
        profile.evaluation.model_dump_json(),
        profile.processing.bald.model_dump_json(),
        judges,
    )[:12]


def _reusable(folder: Path, identifier: str) -> VerdictResult | None:
    """The same test, finished before."""
    path = folder / "verdict.json"
    if not all((folder / name).exists() for name in ("verdict.json", "report.html", "preview.jpg")):
        return None
    data = files.read_json(path)
    if data.get("id") != identifier or data.get("schema") != SCHEMA:
        return None
    return _result(folder, data)


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


def _run_batch(
    cases: list[Case],
    contenders: dict[str, Contender],
    judges: Judges,
    measured: dict[str, Measurements],
    left_out: dict[str, str],
    rows: list[dict[str, Any]],
    sheet: list[list[np.ndarray]],
) -> None:
    """Draw a batch with both models and measure what both have drawn."""
    drawn = {name: contender.draw(cases) for name, contender in contenders.items()}
    both: list[int] = []
    for i, case in enumerate(cases):
        reasons = [drawing for drawings in drawn.values() if isinstance(drawing := drawings[i], str)]
        if reasons:
            left_out[case.sample.image_id] = reasons[0]
        else:
            both.append(i)
    if not both:
        return
    kept = [cases[i] for i in both]
    pairs = {name: [d for i in both if isinstance(d := drawings[i], Drawing)] for name, drawings in drawn.items()}
    for name, drawings in pairs.items():
        measure(kept, drawings, judges, measured[name])
    for i, case in enumerate(kept):
        cells = [case.sample.image, case.bald, pairs["old"][i].final, pairs["new"][i].final]
        if len(rows) < GRID_ROWS:
            numbers = {name: values.rows[len(values.rows) - len(kept) + i] for name, values in measured.items()}
            rows.append(
                {
                    "image_id": case.sample.image_id,
                    "pictures": [pictures.data_uri(cell) for cell in cells],
                    "lines": _lines(numbers["old"], numbers["new"]),
                }
            )
        if len(sheet) < 3:
            sheet.append(cells)


def _lines(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    names = (("hair distance", "lpips_hair"), ("identity", "identity_raw"), ("halo", "halo"))
    return [
        f"{title} {number(old[column], 3)} → {number(new[column], 3)}"
        for title, column in names
        if np.isfinite(old[column]) and np.isfinite(new[column])
    ]


def _identity_column(frames: dict[str, pd.DataFrame]) -> str:
    """Identity before paste-back, which is the models' own doing; after it where one has finished pictures only."""
    return "identity_raw" if all(np.isfinite(frame["identity_raw"]).any() for frame in frames.values()) else "identity"


def _write(
    folder: Path,
    identifier: str,
    decision: Decision,
    identity: str,
    results: dict[str, dict[str, Result]],
    frames: dict[str, pd.DataFrame],
    contenders: dict[str, Contender],
    cases: _Cases,
    rows: list[dict[str, Any]],
    sheet: list[list[np.ndarray]],
    profile: Profile,
) -> VerdictResult:
    """Write all files of the test; verdict.json last."""
    table = pd.concat([frame.assign(model=name) for name, frame in frames.items()], ignore_index=True)
    with files.atomic_path(folder / "per_image.parquet") as path:
        table.to_parquet(path, index=False)
    new, old = contenders["new"], contenders["old"]
    metrics = {results["new"][n].key: as_json(results["new"][n], results["old"][n]) for n in SHOWN}
    numbers = decision_numbers(decision)
    people = int(frames["new"]["person"].nunique())
    notes = warnings(results["new"], cases.origin, cases.left_out, people)
    about = environment()
    provenance = {
        "New": f"{new.label} ({new.version})",
        "Old": f"{old.label} ({old.version})",
        "Photos": f"{cases.origin}; content {cases.fingerprint[:16]}",
        "Sampler": f"{profile.evaluation.steps} steps, guidance {profile.evaluation.guidance_scale}, same seeds",
        "Profile": profile.name,
        "Code": str(about["git_commit"] or "not a git checkout"),
    }
    pictures.write_preview(sheet, folder / "preview.jpg")
    from_raw = "before" if identity == "identity_raw" else "after"
    write_page(
        "ab.html.j2",
        folder / "report.html",
        id=identifier,
        new=new,
        old=old,
        images=len(frames["new"]),
        people=people,
        cases_from=cases.origin,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        verdict=decision.verdict,
        reasons=decision.reasons,
        sign_off=f"uv run hair-pipeline registry sign-off {new.version} --reviewer NAME --decision approve",
        warnings=notes,
        decision=decision_rows(decision, from_raw, results["new"]["lpips_hair"].metric.title, profile.ab_test),
        metrics=[for_page(results["new"][name], results["old"][name]) for name in SHOWN],
        rows=rows,
        left_out=cases.left_out,
        rule=rule_text(profile.ab_test),
        provenance=provenance,
    )
    data_version = files.hash_bytes(identifier, decision.verdict, json.dumps(metrics, sort_keys=True))
    content = {
        "schema": SCHEMA,
        "id": identifier,
        "verdict": decision.verdict,
        "reasons": decision.reasons,
        "old": {"label": old.label, "version": old.version},
        "new": {"label": new.label, "version": new.version},
        "photos": cases.origin,
        "images": len(frames["new"]),
        "people": decision.people,
        "left_out": cases.left_out,
        "identity_measured": f"{from_raw} paste-back",
        "numbers": numbers,
        "metrics": metrics,
        "rule": rule_text(profile.ab_test),
        "data_version": data_version,
        "provenance": provenance,
    }
    files.write_json(folder / "verdict.json", content)
    return _result(folder, content)
