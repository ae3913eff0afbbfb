"""What people see on an asset: thumbnails, numbers that plot over time, tables, links.

Belongs here: turning results of the lower floors into Dagster metadata. Does not belong here: making pictures.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import dagster as dg

if TYPE_CHECKING:
    import pandas as pd

    from hair_pipeline.inputs.summary import Share
    from hair_pipeline.processing.report import ShardReport
    from hair_pipeline.settings import Settings

MAX_THUMBNAIL_BYTES = 20_000
"""Inline pictures live in the event log: a 200 KB picture would cost 1.2 MB of database."""


def thumbnail(picture: Path | None, name: str = "preview") -> dict[str, dg.MetadataValue]:
    """A small JPEG as inline Markdown; left out when there is none or it is too large for the database."""
    if picture is None or not picture.exists():
        return {}
    data = picture.read_bytes()
    if len(data) > MAX_THUMBNAIL_BYTES:
        return {name: dg.MetadataValue.path(str(picture))}
    encoded = base64.b64encode(data).decode()
    return {name: dg.MetadataValue.md(f"![{name}](data:image/jpeg;base64,{encoded})")}


def loss_curves(run_dir: Path) -> dict[str, dg.MetadataValue]:
    """The losses of a run over its steps, as one small drawing; left out when the run has logged none."""
    from hair_pipeline.orchestration.curves import drawn, read_losses

    losses = {
        name: points for path in sorted(run_dir.rglob("losses.jsonl")) for name, points in read_losses(path).items()
    }
    if not losses:
        return {}
    encoded = base64.b64encode(drawn(losses).encode()).decode()
    return {"losses": dg.MetadataValue.md(f"![losses](data:image/svg+xml;base64,{encoded})")}


def report_link(report: Path, settings: Settings) -> dict[str, dg.MetadataValue]:
    """A report's path, and a link where the reports are served: browsers open no file from a page of the UI."""
    path = dg.MetadataValue.path(str(report))
    if settings.reports_url is None:
        return {"report": path}
    place = quote(report.relative_to(settings.reports).as_posix())
    return {"report": dg.MetadataValue.url(f"{settings.reports_url.rstrip('/')}/{place}"), "report_path": path}


def numbers(values: Mapping[str, float | None]) -> dict[str, dg.MetadataValue]:
    """Numbers, plotted over time by the UI; a number that could not be computed is left out, never 0."""
    return {
        name: dg.MetadataValue.int(value) if isinstance(value, int) else dg.MetadataValue.float(float(value))
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    }


def counts_table(counts: Mapping[str, Any], what: str = "reason") -> dg.MetadataValue:
    """A two-column table of counts, largest first."""
    records = [
        dg.TableRecord({what: str(name), "count": int(count)})
        for name, count in sorted(counts.items(), key=lambda item: -int(item[1]))
    ]
    columns = [dg.TableColumn(what, "string"), dg.TableColumn("count", "int")]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def shares_table(shares: Iterable[Share]) -> dg.MetadataValue:
    """How attribute values are shared out between train and validation, the largest differences first."""
    records = [
        dg.TableRecord(
            {
                "attribute": share.attribute,
                "value": share.value,
                "train": round(share.train, 4),
                "validation": round(share.validation, 4),
                "difference": round(share.difference, 4),
            }
        )
        for share in sorted(shares, key=lambda share: -abs(share.difference))
    ]
    columns = [dg.TableColumn(name, "string") for name in ("attribute", "value")]
    columns += [dg.TableColumn(name, "float") for name in ("train", "validation", "difference")]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def frame_table(name: str, frame: pd.DataFrame, rows: int = 20) -> dict[str, dg.MetadataValue]:
    """The first rows of a table; left out when there are none."""
    if frame.empty:
        return {}
    records = [
        dg.TableRecord(
            {str(key): value if isinstance(value, bool | int | float) else str(value) for key, value in row.items()}
        )
        for row in frame.head(rows).to_dict("records")
    ]
    return {name: dg.MetadataValue.table(records)}


def shard_metadata(report: ShardReport) -> dict[str, dg.MetadataValue]:
    """Counts, reasons and the contact sheet of one shard."""
    metadata: dict[str, Any] = {
        **thumbnail(report.preview),  # first, where it is seen without scrolling
        **thumbnail(report.steps, "steps"),
        "written": report.written,
        "failed": len(report.failed),
        "left_out": sum(report.skipped.values()),
        "reused": report.reused,
        **numbers(report.numbers),
    }
    if report.skipped:
        metadata["left_out_by_reason"] = counts_table(report.skipped)
    if report.failed:
        metadata["failed_images"] = dg.MetadataValue.json(dict(list(report.failed.items())[:50]))
    return metadata
