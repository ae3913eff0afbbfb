"""The files that others read: metrics.json and verdict.json, as typed and checked values.

Belongs here: the schemas, which only grow (a changed meaning raises `SCHEMA`). Does not belong here: computing them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hair_pipeline import files
from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.picture_settings import PictureSettings

SCHEMA = 4


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Interval(_Entry):
    """A number with its uncertainty. `value` is null exactly when nothing could be measured: then `reason` says why."""

    value: float | None
    ci_low: float | None = Field(description="lower bound of the 95% interval over people; null without one")
    ci_high: float | None
    n: int = Field(description="images behind the value")
    people: int = Field(description="persons behind the value")
    reason: str | None = Field(description="why the value, or its interval, is missing")


class MetricEntry(Interval):
    """One metric. Its key ends in `_stand_in` where a small stand-in network judged."""

    direction: Literal["higher", "lower", "zero"] = Field(description="which values are better")
    threshold: float | None = Field(description="pass mark, null where none is set")
    passed: bool | None = Field(description="whether the value meets the threshold; null without value or threshold")
    extractor: str | None = Field(description="the network that judged; null for metrics without one")
    unit: str
    title: str
    note: str
    baseline: Interval | None = Field(description="the same of the untrained base, or of the old model in an A/B test")
    difference: Interval | None = Field(
        None, description="value minus the baseline's on the same pictures; the interval is paired by person"
    )


class MetricsFile(_Entry):
    """`reports/eval/<version>/metrics.json`."""

    schema_: int = Field(alias="schema")
    version: str = Field(description="of the model")
    made_at: str = Field(description="UTC, ISO 8601")
    fingerprint: str = Field(description="SHA-256 over model, photos, judges and settings")
    data_version: str = Field(description="SHA-256 over fingerprint and metrics")
    images: int
    people: int
    left_out: dict[str, str] = Field(description="image id -> why it is not evaluated")
    settings: PictureSettings | None = Field(None, description="what the model drew with")
    warnings: list[str]
    metrics: dict[str, MetricEntry]
    confusion: dict[str, list[list[int]]] = Field(
        description="metric -> counts by class asked for (row) and seen (column), in the vocabulary's order"
    )
    provenance: dict[str, str]


class Side(_Entry):
    """One of the two models of an A/B test."""

    label: str
    version: str
    settings: PictureSettings | None = Field(None, description="what it drew with; null for finished pictures")
    first_opponent: bool = Field(
        False, description="whether it is what a first version is compared with: untrained, or ab_test.first_opponent"
    )


class VerdictFile(_Entry):
    """`reports/ab/<id>/verdict.json`."""

    schema_: int = Field(alias="schema")
    id: str = Field(description="12 hex digits over both models, photos, judges and settings")
    made_at: str = Field(description="UTC, ISO 8601")
    verdict: Literal["approve", "reject", "inconclusive"]
    reasons: list[str]
    old: Side
    new: Side
    photos: str = Field(description="where the photos come from")
    images: int
    people: int = Field(description="people with both LPIPS and identity measured")
    failures: int = Field(description="photos on which the new model returned no usable picture")
    earlier_verdicts: int = Field(0, description="other tests in reports/ab with a verdict on the same two versions")
    left_out: dict[str, str] = Field(description="file or image id -> why it takes no part")
    identity_measured: str = Field(description="before or after paste-back")
    numbers: dict[str, Interval] = Field(description="improvement, hair_gain, identity_gain, identity_difference")
    metrics: dict[str, MetricEntry] = Field(description="of the new model; `baseline` is the old one")
    rule: str
    data_version: str
    provenance: dict[str, str]


def checked(kind: type[BaseModel], content: dict[str, Any]) -> dict[str, Any]:
    """The content itself, after a check against its schema.

    Raises:
        ValidationError: it does not fit; a fault of this program.
    """
    kind.model_validate(content)
    return content


def read_metrics(path: Path) -> MetricsFile:
    """Read and check a metrics.json.

    Raises:
        PipelineError: missing, not JSON, or of another schema.
    """
    content = files.read_json(path)
    if isinstance(content, dict) and content.get("schema", SCHEMA) != SCHEMA:
        raise PipelineError(
            f"is a metrics file of schema {content['schema']}, not {SCHEMA}",
            file=path,
            remedy="materialise eval_report again",
        )
    try:
        return MetricsFile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PipelineError(
            f"is not a metrics file of schema {SCHEMA} ({where}: {first['msg']})",
            file=path,
            remedy="materialise eval_report again",
        ) from error
