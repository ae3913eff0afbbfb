"""What one shard of one asset came to: the report, kept as a manifest beside the output, and when to reuse it.

Belongs here: the record and its file. Does not belong here: the work (`shards`) and Dagster's metadata.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import read_json, write_json


@dataclass(frozen=True)
class ShardReport:
    """The outcome for one shard.

    Attributes:
        asset, shard: names.
        fingerprint: of the inputs and settings the output was made from.
        written: results written (images, or rows of a table).
        skipped: reason -> number of images that take no part, or gave less than they might.
        left_out: the same reasons -> these images.
        failed: image id -> what went wrong; a bad image never fails a shard.
        data_version: SHA-256 over the names and bytes written.
        numbers: plotted over time.
        preview: JPEG of at most 20 KB beside the manifest; None when there is nothing to show.
        steps: the same, showing each step of the work on one image.
        reused: nothing was done: inputs and settings are as they were.
    """

    asset: str
    shard: str
    fingerprint: str
    written: int
    skipped: dict[str, int]
    failed: dict[str, str]
    data_version: str
    numbers: dict[str, float] = field(default_factory=dict)
    preview: Path | None = None
    steps: Path | None = None
    left_out: dict[str, list[str]] = field(default_factory=dict)
    reused: bool = False


_PICTURES = ("preview", "steps")


def save(report: ShardReport, manifest: Path) -> None:
    """Write a report as a manifest: last, when all output is on disk."""
    names = {name: None if (path := getattr(report, name)) is None else path.name for name in _PICTURES}
    write_json(manifest, asdict(report) | names | {"reused": False})


def reusable(manifest: Path, fingerprint: str) -> ShardReport | None:
    """The manifest's report, marked as reused, when it was made from the same inputs and settings; else None.

    A shard with failed images is not reused: what failed, say for a drive that was away, may succeed now.
    """
    if not manifest.exists():
        return None
    try:
        values: Any = read_json(manifest)
        pictures = {name: None if values.get(name) is None else manifest.with_name(values[name]) for name in _PICTURES}
        report = ShardReport(**(values | pictures | {"reused": True}))
    except (PipelineError, AttributeError, TypeError):
        return None  # a manifest that cannot be read counts as none: the shard is done again
    missing = any(path is not None and not path.exists() for path in pictures.values())
    return report if report.fingerprint == fingerprint and not report.failed and not missing else None
