"""The A/B test: an old and a new model draw the same photos; the rule of `ab_rule` decides.

Belongs here: the run of the test from customers to measured pairs. Does not belong here: the rule, the contenders, the
files (`ab_files`), people's review (`blind_review`) and sign-off.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from hair_pipeline import files
from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation import pictures
from hair_pipeline.evaluation.ab_files import Photos, VerdictResult, reusable, write_verdict
from hair_pipeline.evaluation.ab_rule import decide
from hair_pipeline.evaluation.cases import Case, load_cases, plan_validation
from hair_pipeline.evaluation.contenders import Contender, Drawing, ModelContender, opponent, resolve
from hair_pipeline.evaluation.customers import Problems, customer_cases, find_customers, fingerprint
from hair_pipeline.evaluation.fingerprints import drawn_by, held_out_vectors, measured_with
from hair_pipeline.evaluation.judges import Judges, load_judges
from hair_pipeline.evaluation.ledger import Ledger
from hair_pipeline.evaluation.measure import measure
from hair_pipeline.evaluation.results import summarise
from hair_pipeline.evaluation.verdicts import earlier_verdicts, write_pointer
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.members import Members
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.data import read_reliable_identities, read_style_vectors

SHOWN_PHOTOS = 100
"""Photos on the page and in the blind review, drawn at random by `ab_test.seed`."""
PICTURE_SIDE = 384
MODELS = ("old", "new")
LOCK = ".ab_test.lock"
"""Held in the folder while a test runs there; it stays, and no reader of the folder looks at it."""


@dataclass(frozen=True)
class _Photos:
    """What is drawn, and whose photos these are.

    Attributes:
        ids: of all photos, in order. batches: the cases of those not named in a set of finished ids, and where to
            note what is left out.
    """

    ids: list[str]
    batches: Callable[[set[str], dict[str, str]], Iterator[list[Case]]]
    origin: str
    left_out: dict[str, str]
    fingerprint: str


def run_ab_test(
    customers: Path | None, old: str, new: str, out: Path, settings: Settings, profile: Profile
) -> VerdictResult:
    """Compare two models on the same photos, masks, style references (each person's own hair) and seeds.

    A finished test is reused; one that was killed goes on with the photos that were not finished. No more than one
    batch of photos is held at a time. Of two tests in one folder the second waits for the first.

    Args:
        customers: folder of photos (see `customers`); None takes the held-out validation people, and the verdict says
            so.
        old, new: SPECs of `contenders`.
        out: folder for verdict.json, per_image.parquet, report.html, preview.jpg, blind/ and blind_key.json. If it is
            `reports/ab` of the training root, a subfolder named by the test's id is made there and `current.json`
            points to it: that is the verdict which release reads.

    Raises:
        PipelineError: a SPEC or the customers cannot be read, or there is no photo that both models drew.
    """
    candidate = resolve(new, settings, profile)
    other = opponent(candidate, settings, profile) if old == "production" else old
    contenders = {"old": resolve(other, settings, profile), "new": candidate}
    photos = _customer_photos(customers, settings, profile) if customers else _validation_photos(settings, profile)
    first_opponent = other in ("untrained", profile.ab_test.first_opponent)
    identifier = _identifier(contenders, photos, settings, profile, first_opponent)
    managed = out.resolve() == (settings.reports / "ab").resolve()
    folder = out / identifier if managed else out
    done = reusable(folder, identifier)
    if done is None:
        with files.one_at_a_time(folder / LOCK):  # another process may be running this test, or another one, here
            done = reusable(folder, identifier)
            if done is None:
                done = _run(folder, identifier, contenders, photos, settings, profile, first_opponent)
    if managed:
        write_pointer(out, identifier, done.version, done.verdict, folder)
    return done


def _run(
    folder: Path,
    identifier: str,
    contenders: dict[str, Contender],
    photos: _Photos,
    settings: Settings,
    profile: Profile,
    first_opponent: bool,
) -> VerdictResult:
    judges = load_judges(settings, profile, sets=False)
    ledger = Ledger(_unfinished(folder, identifier), MODELS)
    lost = dict(ledger.left_out)
    with tqdm(total=len(photos.ids), initial=len(ledger.done), desc="A/B test", unit="image") as bar:
        for cases in photos.batches(ledger.done, lost):
            _run_batch(cases, contenders, judges, ledger, lost, profile.ab_test.seed)
            bar.update(len(cases))
    left_out = photos.left_out | lost
    if not ledger.rows["new"]:
        ledger.close()
        raise PipelineError(
            "no photo was drawn by both models",
            remedy="; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3]) or "add photos",
        )
    frames = {name: pd.DataFrame(rows) for name, rows in ledger.rows.items()}
    identity = _identity_column(frames)
    failures = sum(name.startswith(FAILED) for name in ledger.left_out)
    decision = decide(
        frames["new"]["person"].to_numpy(str),
        frames["old"]["lpips_hair"].to_numpy(float),
        frames["new"]["lpips_hair"].to_numpy(float),
        frames["old"][identity].to_numpy(float),
        frames["new"][identity].to_numpy(float),
        profile.ab_test,
        failures=failures,
    )
    versions = contenders["old"].version, contenders["new"].version
    earlier = earlier_verdicts(settings.reports / "ab", identifier, *versions)
    measured = {name: ledger.measurements(name) for name in MODELS}
    results = {
        "old": summarise(measured["old"], judges),
        "new": summarise(measured["new"], judges, baseline=measured["old"]),
    }
    told = Photos(photos.origin, photos.fingerprint, left_out, failures)
    arguments = decision, identity, results, frames, contenders, told, ledger, profile
    result = write_verdict(folder, identifier, *arguments, first_opponent=first_opponent, earlier=earlier)
    ledger.close()
    return result


FAILED = "new model: "
"""Beginning of an entry under Left out, where it is the new model that failed."""


def _unfinished(folder: Path, identifier: str) -> Path:
    """Where this test's finished photos are kept; those of another test in the same folder are dropped."""
    own = folder / f".{identifier}.unfinished"
    for other in folder.glob(".*.unfinished"):
        if other != own:
            shutil.rmtree(other, ignore_errors=True)
    return own


def _customer_photos(folder: Path, settings: Settings, profile: Profile) -> _Photos:
    found = Problems()
    customers = find_customers(folder, settings, found)
    content = fingerprint(customers)

    def batches(done: set[str], lost: dict[str, str]) -> Iterator[list[Case]]:
        problems = Problems()
        remaining = [customer for customer in customers if f"{customer.id}|{customer.id}" not in done]
        for batch in customer_cases(remaining, profile, problems):
            lost |= problems.as_lines()
            yield batch
        lost |= problems.as_lines()

    return _Photos([c.id for c in customers], batches, f"customers in {folder.name}", found.as_lines(), content)


def _validation_photos(settings: Settings, profile: Profile) -> _Photos:
    members = Members.read(settings.catalog_path)
    styles = read_style_vectors(settings.processed / "style_vectors", members)
    identities = read_reliable_identities(settings.processed / "identity_embeddings", members)
    plan = plan_validation(read_catalog(settings.catalog_path), styles, profile.evaluation.max_images)
    ids = [str(name) for name in plan.rows["image_id"]]
    rows = json.dumps(plan.rows[["image_id", "content_hash"]].to_numpy().tolist())
    content = files.hash_bytes(rows, held_out_vectors(settings))

    def batches(done: set[str], lost: dict[str, str]) -> Iterator[list[Case]]:
        pairs = [(index, index) for index, name in enumerate(ids) if f"{name}|{name}" not in done]
        return load_cases(plan, pairs, identities, settings, profile, lost)

    origin = "held-out validation people, because no customers folder is set"
    return _Photos(ids, batches, origin, dict(plan.left_out), content)


def _identifier(
    contenders: dict[str, Contender], photos: _Photos, settings: Settings, profile: Profile, first_opponent: bool
) -> str:
    """12 hex digits over both models, the photos, the judges and the settings."""
    models = (drawn_by(contenders[name], settings, profile) for name in MODELS)
    rule = profile.ab_test.model_dump_json()
    measured = measured_with(settings, profile)
    return files.hash_bytes(*models, photos.fingerprint, rule, str(first_opponent), measured)[:12]


def _run_batch(
    cases: list[Case], contenders: dict[str, Contender], judges: Judges, ledger: Ledger, lost: dict[str, str], seed: int
) -> None:
    """Draw a batch with both models, measure what both have drawn, and save it."""
    if not cases:
        return
    drawn = {name: contender.draw(cases) for name, contender in contenders.items()}
    both: list[int] = []
    for i, case in enumerate(cases):
        old, new = drawn["old"][i], drawn["new"][i]
        if isinstance(new, str):
            whose = FAILED if isinstance(contenders["new"], ModelContender) else ""
            lost[f"{whose}{case.sample.image_id}"] = new
        elif isinstance(old, str):
            lost[case.sample.image_id] = old
        else:
            both.append(i)
    kept = [cases[i] for i in both]
    pairs = {name: [d for i in both if isinstance(d := drawings[i], Drawing)] for name, drawings in drawn.items()}
    measured = measure(kept, pairs, judges) if kept else {}
    shown = _shown([str(row["case"]) for row in ledger.rows["new"]] + [case.key for case in kept], seed)
    for i, case in enumerate(kept):
        if case.key not in shown:
            continue
        finals = {name: drawings[i].final for name, drawings in pairs.items()}
        ledger.keep(case.key, {"photo": case.sample.image, "bald": case.bald} | finals, side=PICTURE_SIDE)
        if (seams := pictures.seam_strip(case, finals["old"], finals["new"])) is not None:
            ledger.keep(case.key, {"seams": seams}, side=seams.shape[1])
    ledger.add([case.key for case in cases], measured, lost)
    ledger.drop_all_but(shown)


def _shown(keys: list[str], seed: int) -> set[str]:
    """The cases to show, drawn so that a case which is not among them never will be when more come."""
    return set(sorted(keys, key=lambda key: files.hash_bytes(str(seed), key))[:SHOWN_PHOTOS])


def _identity_column(frames: dict[str, pd.DataFrame]) -> str:
    """Identity before paste-back, which is the models' own doing; after it where one has finished pictures only."""
    return "identity_raw" if all(np.isfinite(frame["identity_raw"]).any() for frame in frames.values()) else "identity"
