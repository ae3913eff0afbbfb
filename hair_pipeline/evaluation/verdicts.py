"""Finding and reading the evaluation and the A/B verdict again, from disk: what release decides by.

Belongs here: the pointer `reports/ab/current.json`, and the checks on what release rests on. Does not belong here:
making a verdict (`ab_test`, `ab_rule`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hair_pipeline import files
from hair_pipeline.errors import PipelineError, ReleaseRefused
from hair_pipeline.evaluation.metrics.definitions import METRICS
from hair_pipeline.evaluation.picture_settings import PictureSettings
from hair_pipeline.evaluation.schema import read_metrics
from hair_pipeline.settings import Settings

POINTER = "current.json"
REQUIRED = ("identity_raw", "identity", "lpips_hair", "curl_accuracy", "halo", "leakage_swap", "untouched_changed")
"""Metrics without which nothing is released: each must have been measured."""
MUST_PASS = {
    "identity": "train longer or on more data; look at the report's worst cases",
    "leakage_swap": "look at the bald images and their masks: old hair still decides what is drawn",
    "untouched_changed": "look at paste-back; per_image.parquet names the photos",
}
"""Of these, what must also reach its threshold, and what to do where it does not."""
REMEDY = "materialise ab_verdict for this model, or run: uv run hair-pipeline ab-test --help"


@dataclass(frozen=True)
class VerdictRecord:
    """A verdict as it stands on disk.

    Attributes:
        verdict: approve, reject or inconclusive. reasons: why.
        id: of the A/B test. version: the new model's. against: the old model's, in words.
        against_version: the old model's version. against_first: whether it is what a first version is compared with.
        settings: what the new model drew with, None in a verdict of an older program.
        path: verdict.json, relative to the training root. sha256: of its content.
    """

    verdict: str
    reasons: list[str]
    id: str
    version: str
    against: str
    against_version: str
    against_first: bool
    settings: PictureSettings | None
    path: str
    sha256: str

    def as_json(self) -> dict[str, Any]:
        """What the registry and the card keep of it."""
        settings = None if self.settings is None else self.settings.model_dump(mode="json")
        return asdict(self) | {"settings": settings}


def write_pointer(ab_folder: Path, identifier: str, version: str, verdict: str, folder: Path) -> None:
    """Make `folder` the current A/B test."""
    content = {"id": identifier, "version": version, "verdict": verdict, "folder": folder.name}
    files.write_json(ab_folder / POINTER, content)


def read_verdict(settings: Settings, version: str) -> VerdictRecord:
    """The current A/B verdict, which must be about `version`.

    Raises:
        PipelineError: no A/B test has been run, its files are broken, or it judged another model.
    """
    pointer_path = settings.reports / "ab" / POINTER
    if not pointer_path.exists():
        raise PipelineError("no A/B test has been run yet", file=pointer_path, remedy=REMEDY)
    pointer = files.read_json(pointer_path)
    try:
        files.confined(settings.reports / "ab", pointer["folder"])
        path = settings.reports / "ab" / pointer["folder"] / "verdict.json"
        data = files.read_json(path)
        drawn_with = data["new"].get("settings")
        record = VerdictRecord(
            verdict=data["verdict"],
            reasons=list(data["reasons"]),
            id=data["id"],
            version=data["new"]["version"],
            against=data["old"]["label"],
            against_version=data["old"]["version"],
            against_first=bool(data["old"].get("first_opponent", False)),
            settings=None if drawn_with is None else PictureSettings.model_validate(drawn_with),
            path=path.relative_to(settings.training_root).as_posix(),
            sha256=files.hash_file(path),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PipelineError(
            f"the A/B test's files are incomplete ({error})", file=pointer_path, remedy=REMEDY
        ) from error
    if record.version != version:
        raise PipelineError(
            f"the last A/B test judged version {record.version}, not {version}", file=pointer_path, remedy=REMEDY
        )
    return record


def earlier_verdicts(ab_folder: Path, identifier: str, old: str, new: str) -> int:
    """How many other tests in `reports/ab` have a verdict on the same two versions: each look may approve by chance."""
    found = 0
    for path in ab_folder.glob("*/verdict.json"):
        try:
            data = files.read_json(path)
            versions = data["old"]["version"], data["new"]["version"]
            found += versions == (old, new) and data["id"] != identifier
        except (PipelineError, KeyError, TypeError):
            continue  # not finished, or damaged: that is no verdict
    return found


def require_evaluation(settings: Settings, version: str) -> None:
    """The validation report of `version`, which must be whole.

    Raises:
        PipelineError: there is none, or it cannot be read.
        ReleaseRefused: one of the `REQUIRED` metrics could not be measured, or one of `MUST_PASS` misses its threshold.
    """
    path = settings.reports / "eval" / version / "metrics.json"
    if not path.exists():
        raise PipelineError(
            f"version {version} has not been evaluated", file=path, remedy="materialise eval_report for this model"
        )
    report = read_metrics(path)
    if report.version != version:
        raise PipelineError(
            f"is the report of version {report.version}, not of {version}",
            file=path,
            remedy="materialise eval_report again",
        )
    metrics = report.metrics
    entries = {name: metrics.get(name) or metrics.get(f"{name}_stand_in") for name in REQUIRED}
    for name, entry in entries.items():
        if entry is None or entry.value is None:
            why = "is not in the report" if entry is None else f"could not be measured: {entry.reason}"
            raise ReleaseRefused(
                f"version {version} may not be released: {name} {why}",
                file=path,
                remedy="mend the cause and materialise eval_report again",
            )
        metric = next(metric for metric in METRICS if metric.name == name)
        if name in MUST_PASS and not metric.passes(entry.value):  # by the rule, not by what the file says of itself
            limit = "at least" if metric.direction == "higher" else "at most"
            raise ReleaseRefused(
                f"version {version} may not be released: {name} is {entry.value:.3g}, must be {limit} "
                f"{metric.threshold} ({entry.title.lower()})",
                file=path,
                remedy=MUST_PASS[name],
            )


def require_approval(settings: Settings, version: str) -> VerdictRecord:
    """The verdict on `version`, which must be approve.

    Raises:
        PipelineError: as `read_verdict`.
        ReleaseRefused: the verdict is reject or inconclusive.
    """
    record = read_verdict(settings, version)
    if record.verdict != "approve":
        raise ReleaseRefused(
            f"version {version} may not be released: its A/B verdict is {record.verdict} ({'; '.join(record.reasons)})",
            file=settings.training_root / record.path,
            remedy="read the report beside this file; train longer or on more data, or test on more customers",
        )
    return record
