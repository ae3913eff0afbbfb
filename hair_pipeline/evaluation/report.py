"""The validation report: held-out people, the current Stage 2 model, the untrained base beside it.

Belongs here: the run of the report from catalog to measured cases. Does not belong here: metrics, the files and the
page made of them (`report_files`), the A/B test.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hair_pipeline import files
from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation import leakage, pictures
from hair_pipeline.evaluation.cases import Case, ValidationPlan, load_cases, plan_validation, spread_over_people
from hair_pipeline.evaluation.contenders import Contender, Drawing, ModelContender, stage2_current, untrained
from hair_pipeline.evaluation.fingerprints import REPORT_ONLY, current_model, held_out_vectors, measured_with
from hair_pipeline.evaluation.judges import Judges, load_judges
from hair_pipeline.evaluation.ledger import Ledger
from hair_pipeline.evaluation.measure import Measurements, measure
from hair_pipeline.evaluation.report_files import ReportResult, reusable, shown_cases, write_pointer, write_report
from hair_pipeline.evaluation.results import summarise
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.members import Members
from hair_pipeline.processing.leakage import stored_leakage
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.data import VectorTable, read_reliable_identities, read_style_vectors
from hair_pipeline.training.runs import current

PRUNE_EVERY = 50
"""Batches between two looks at which pictures are still worth keeping."""


def evaluate(settings: Settings, profile: Profile) -> ReportResult:
    """Draw every held-out, Stage 2 eligible photo with its own and with another person's style, and measure.

    Writes `reports/eval/<version>/{metrics.json,per_image.parquet,report.html,preview.jpg}`, metrics.json last, and
    the pointer `reports/eval/current.json`. A report of the same model, data and settings is reused; one that was
    killed goes on with the cases that were not finished. No more than one batch of photos is held at a time. Of two
    evaluations of one model the second waits for the first.

    Raises:
        PipelineError: Stage 2 is not trained, no held-out photo can be evaluated, or a model returned values that are
            not finite.
    """
    catalog = read_catalog(settings.catalog_path)
    members = Members.read(settings.catalog_path)
    styles = read_style_vectors(settings.processed / "style_vectors", members)
    identities = read_reliable_identities(settings.processed / "identity_embeddings", members)
    plan = plan_validation(catalog, styles, profile.evaluation.max_images)
    model = current("stage2", settings)
    fingerprint = _fingerprint(model.version, plan, settings, profile)
    folder = settings.reports / "eval" / model.version[:12]
    if plan.rows.empty:
        raise PipelineError(
            "no held-out photo can be evaluated: none has both a face (Stage 2) and a style vector",
            file=settings.catalog_path,
            remedy="look at split, stage2 and stage2_reason in the catalog; more people or front views are needed",
        )
    done = reusable(folder, fingerprint)
    if done is None:
        with files.one_at_a_time(folder.with_name(f".{folder.name}.lock")):  # another process may be making it
            done = reusable(folder, fingerprint)
            if done is None:
                return _make(folder, fingerprint, plan, styles, identities, settings, profile)
    write_pointer(folder, done.version)
    return done


def _make(
    folder: Path,
    fingerprint: str,
    plan: ValidationPlan,
    styles: VectorTable,
    identities: VectorTable,
    settings: Settings,
    profile: Profile,
) -> ReportResult:
    judges = load_judges(settings, profile)
    contenders = {"model": stage2_current(settings, profile, styles), "base": untrained(settings, profile)}
    ledger = Ledger(_unfinished(folder, fingerprint), list(contenders))
    _Run(plan, identities, contenders, judges, ledger, settings, profile).all()
    if not ledger.rows["model"]:
        ledger.close()
        raise PipelineError(
            "no held-out photo can be read any more",
            file=settings.k_hairstyle_root,
            remedy="; ".join(f"{name}: {reason}" for name, reason in list(ledger.left_out.items())[:3]),
        )
    measured = {name: ledger.measurements(name) for name in contenders}
    bald = stored_leakage(settings, profile.processing)
    results = {
        "model": summarise(measured["model"], judges, bald, baseline=measured["base"]),
        "base": summarise(measured["base"], judges),
    }
    left_out = plan.left_out | ledger.left_out
    report = write_report(folder, fingerprint, results, ledger, left_out, settings, profile)
    ledger.close()
    return report


def _unfinished(folder: Path, fingerprint: str) -> Path:
    """Where this report's finished cases are kept; those of the same model under other settings are dropped."""
    own = folder.with_name(f".{folder.name}.{fingerprint[:12]}.unfinished")
    for other in folder.parent.glob(f".{folder.name}.*.unfinished"):
        if other != own:
            shutil.rmtree(other, ignore_errors=True)
    return own


@dataclass(frozen=True)
class _Run:
    """Draws and measures batch by batch."""

    plan: ValidationPlan
    identities: VectorTable
    contenders: dict[str, ModelContender]
    judges: Judges
    ledger: Ledger
    settings: Settings
    profile: Profile

    def all(self) -> None:
        own = [(index, index) for index in range(len(self.plan.rows))]
        transfer = [(index, donor) for index, donor in enumerate(self.plan.donors) if donor is not None]
        wearers = self.plan.rows["source"].iloc[[index for index, _ in transfer]]
        chosen = spread_over_people(wearers, self.profile.evaluation.leakage_images)
        swapped = {self._key(transfer[place]) for place in chosen}
        finished = len(self.ledger.done)
        with tqdm(total=len(own) + len(transfer), initial=finished, desc="evaluate", unit="image") as bar:
            for pairs in (own, transfer):
                remaining = [pair for pair in pairs if self._key(pair) not in self.ledger.done]
                lost: dict[str, str] = {}
                batches = load_cases(self.plan, remaining, self.identities, self.settings, self.profile, lost)
                for number, cases in enumerate(batches):
                    self._batch(cases, swapped, lost)
                    if number % PRUNE_EVERY == PRUNE_EVERY - 1:
                        self._prune()
                    bar.update(len(cases))
        self._prune()

    def _key(self, pair: tuple[int, int]) -> str:
        ids = self.plan.rows["image_id"]
        return f"{ids[pair[0]]}|{ids[pair[1]]}"

    def _batch(self, cases: list[Case], swapped: set[str], lost: dict[str, str]) -> None:
        if not cases:  # no photo of the batch can be read any more
            self.ledger.add([], {}, lost)
            return
        drawn = {name: _draw(contender, cases) for name, contender in self.contenders.items()}
        measured = measure(cases, drawn, self.judges)
        self._add_swaps(cases, drawn["model"], measured["model"], swapped)
        for i, case in enumerate(cases):
            cells = _cells(case, {name: drawn[name][i].final for name in drawn})
            self.ledger.keep(case.key, cells, side=pictures.THUMBNAIL_SIDE)
            if (seams := pictures.seam_strip(case, drawn["model"][i].final)) is not None:
                self.ledger.keep(case.key, {"seams": seams}, side=seams.shape[1])
        self.ledger.add([case.key for case in cases], measured, lost)

    def _add_swaps(self, cases: list[Case], drawings: list[Drawing], measured: Measurements, swapped: set[str]) -> None:
        places = [i for i, case in enumerate(cases) if case.transfer and case.key in swapped]
        if not places:
            return
        # The whole batch again, so that each case keeps its place: rounding may depend on it.
        bald = self.profile.processing.bald
        others = [leakage.swap_hair(case, bald) if i in places else case for i, case in enumerate(cases)]
        again = _draw(self.contenders["model"], others)
        for i in places:
            measured.rows[i]["leakage_swap"] = leakage.swap_difference(cases[i], drawings[i], again[i])

    def _prune(self) -> None:
        rows = self.ledger.rows["model"]
        self.ledger.drop_all_but(shown_cases(rows, self.profile.evaluation.grid_rows))


def _draw(contender: Contender, cases: list[Case]) -> list[Drawing]:
    drawings = contender.draw(cases)
    for case, drawing in zip(cases, drawings, strict=True):
        if isinstance(drawing, str):
            raise PipelineError(
                f"{contender.label}: {drawing} (photo {case.sample.image_id}, style of {case.reference.image_id})",
                remedy="look at the training's losses; a model that returns such values cannot be released",
            )
    return [drawing for drawing in drawings if isinstance(drawing, Drawing)]


def _cells(case: Case, finals: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A case's pictures by name."""
    return {"photo": case.sample.image, "bald": case.bald, "style": pictures.hair_on_gray(case)} | finals


def _fingerprint(version: str, plan: ValidationPlan, settings: Settings, profile: Profile) -> str:
    """Over everything the report depends on: model, photos, judges and settings."""
    return files.hash_bytes(
        current_model(version, settings, profile),
        json.dumps(plan.rows[["image_id", "content_hash"]].to_numpy().tolist()),
        held_out_vectors(settings),
        measured_with(settings, profile),
        profile.evaluation.model_dump_json(include=REPORT_ONLY),
    )
