"""One shard of one processed asset: every image through a process pool, results on disk, a manifest beside them.

Belongs here: the four assets' shard functions and what they share (fingerprint, reuse, failures, stale files).
Does not belong here: how one image is changed (`bald`, `hair_only`, `patches`, `identity`) and Dagster.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import atomic_path, hash_bytes, hash_file, write_bytes
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.samples import InputRoots
from hair_pipeline.inputs.workers import map_in_processes
from hair_pipeline.processing import identity, work
from hair_pipeline.processing.previews import contact_sheet, encode_preview
from hair_pipeline.processing.report import ShardReport, reusable, save
from hair_pipeline.processing.work import ROW_COLUMNS, Outcome, Work, guarded
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings

ALGORITHM_VERSION = 1
"""Raised when the code makes other pixels from the same inputs and settings, so that shards are done again."""
PREVIEW_IMAGES = 12
ROWS_PER_GROUP = 64
PATCH_SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "person": pa.string(),
        "curl_class": pa.string(),
        "size": pa.int32(),
        "x": pa.int32(),
        "y": pa.int32(),
        "scale": pa.float32(),
        "image": pa.binary(),
    }
)
"""x, y: top-left corner in the photo the patch was cut from; scale: photo pixels per processed pixel."""


@dataclass(frozen=True)
class _Job:
    """A shard about to be made."""

    asset: str
    shard: str
    settings: Settings
    rows: pd.DataFrame
    fingerprint: str

    @property
    def roots(self) -> InputRoots:
        return InputRoots(self.settings.k_hairstyle_root, self.settings.training_face_root)

    @property
    def folder(self) -> Path:
        return self.settings.processed / self.asset

    @property
    def manifest(self) -> Path:
        return self.folder / f"{self.shard}.json"

    @property
    def table(self) -> Path:
        return self.folder / f"{self.shard}.parquet"

    @property
    def preview(self) -> Path:
        return self.folder / f"{self.shard}.preview.jpg"


def make_bald_images(shard: str, settings: Settings, profile: Profile) -> ShardReport:
    """Write `bald_images/<shard>/<image_id>.jpg|.png`: RGB, hair removed and filled.

    Raises:
        PipelineError: no such shard, output cannot be written, or not one image could be read.
    """
    config = profile.processing
    job = _job("bald_images", shard, settings, profile, config.bald.model_dump())
    return _make_images(job, partial(work.bald, roots=job.roots, config=config, folder=job.folder / shard))


def make_hair_only_images(shard: str, settings: Settings, profile: Profile) -> ShardReport:
    """Write `hair_only_images/<shard>/<image_id>.webp|.png`: RGBA, RGB zero where alpha is 0. Raises as above."""
    config = profile.processing
    job = _job("hair_only_images", shard, settings, profile, {})
    return _make_images(job, partial(work.hair_only, roots=job.roots, config=config, folder=job.folder / shard))


def cut_hair_patches(shard: str, settings: Settings, profile: Profile) -> ShardReport:
    """Write `hair_patches/<shard>.parquet` (`PATCH_SCHEMA`), one row per patch. Raises as above."""
    config = profile.processing
    job = _job("hair_patches", shard, settings, profile, config.patches.model_dump())
    done = _reuse(job)
    if done:
        return done
    collected = _Collected()
    with atomic_path(job.table) as path, pq.ParquetWriter(path, PATCH_SCHEMA, compression="zstd") as writer:
        outcomes = _outcomes(job, partial(work.patches, roots=job.roots, config=config))
        for group in _groups(collected.take(outcomes), ROWS_PER_GROUP):
            rows = [row for outcome in group for row in outcome.rows]
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema=PATCH_SCHEMA))
        collected.check(job)
    skipped = {"no_window": int(collected.total("without_window"))}
    totals = {f"patches_{size}": collected.total(f"patches_{size}") for size in config.patches.sizes}
    written = int(sum(totals.values()))
    return _finish(job, collected, written, hash_file(job.table), skipped, totals)


def gather_identity_embeddings(shard: str, settings: Settings, profile: Profile) -> ShardReport:
    """Write `identity_embeddings/<shard>.parquet` (`identity.SCHEMA`): training_face's embeddings, checked."""
    job = _job("identity_embeddings", shard, settings, profile, {})
    done = _reuse(job)
    if done:
        return done
    collected = _Collected()
    gathered = identity.gather(job.rows, settings)
    buffer = io.BytesIO()
    pq.write_table(gathered.table(), buffer, compression="zstd")
    write_bytes(job.table, buffer.getvalue())
    persons, cosines = gathered.similarities()
    picture = identity.picture(cosines)
    collected.tiles = [] if picture is None else [picture]
    numbers = {"reliable": float(len(persons)), **identity.agreement(persons, cosines)}
    return _finish(job, collected, len(gathered.rows), hash_file(job.table), gathered.skipped, numbers)


# What the shard functions share.


def _job(asset: str, shard: str, settings: Settings, profile: Profile, config: dict[str, Any]) -> _Job:
    rows = read_catalog(settings.catalog_path, shard)
    if rows.empty:
        remedy = "materialise the asset catalog and choose one of its shards"
        raise PipelineError(f"no image is in {shard!r}", file=settings.catalog_path, remedy=remedy)
    common = {"size": profile.processing.size, "image_format": profile.processing.image_format}
    columns = rows[["image_id", "content_hash", "mask_origin", "stage2", "identity_reason", "curl_class"]]
    parts = json.dumps(columns.astype(object).to_numpy().tolist())
    fingerprint = hash_bytes(asset, str(ALGORITHM_VERSION), json.dumps(common | config, sort_keys=True), parts)
    return _Job(asset, shard, settings, rows, fingerprint)


def _reuse(job: _Job) -> ShardReport | None:
    """The earlier report, when inputs and settings are the same and the output is still there, whole."""
    report = reusable(job.manifest, job.fingerprint)
    if report is None or _measure(job) != (report.numbers.get("files"), report.numbers.get("bytes")):
        return None
    return report


def _measure(job: _Job) -> tuple[int, int]:
    """Number and bytes of the output files on disk."""
    folder = job.folder / job.shard
    files = list(folder.iterdir()) if folder.is_dir() else [job.table] if job.table.exists() else []
    return len(files), sum(path.stat().st_size for path in files)


def _outcomes(job: _Job, function: Work) -> Iterator[Outcome]:
    step = -(-len(job.rows) // PREVIEW_IMAGES)
    columns = [job.rows[name].tolist() for name in ROW_COLUMNS]
    items = [
        SimpleNamespace(**dict(zip(ROW_COLUMNS, values, strict=True)), shown=index % step == 0)
        for index, values in enumerate(zip(*columns, strict=True))
    ]
    description = f"{job.asset} {job.shard}"
    return map_in_processes(partial(guarded, work=function), items, description=description)


class _Collected:
    """Sums up outcomes as they come; keeps no image but the preview's tiles."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.images = 0
        self.failed: dict[str, str] = {}
        self.files: list[tuple[str, str, int]] = []
        self.sums: dict[str, float] = {}
        self.tiles: list[np.ndarray] = []

    def take(self, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
        """Pass good outcomes on, note failures."""
        for outcome in outcomes:
            self.images += 1
            if outcome.failure is not None:
                self.failed[outcome.image_id] = outcome.failure
                continue
            if outcome.file is not None:
                self.files.append(outcome.file)
            for name, value in outcome.numbers.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.tiles += outcome.tiles
            yield outcome

    def total(self, name: str) -> float:
        return self.sums.get(name, 0.0)

    def check(self, job: _Job) -> None:
        """Refuse to replace a shard by nothing.

        Raises:
            PipelineError: every image failed.
        """
        if self.images and len(self.failed) == self.images:
            image_id, reason = next(iter(self.failed.items()))
            what = f"{job.asset}: none of the {self.images} images of {job.shard} could be used ({image_id}: {reason})"
            remedy = "check the input roots, or materialise the catalog again if the inputs changed"
            raise PipelineError(what, file=job.settings.k_hairstyle_root, remedy=remedy)


def _make_images(job: _Job, function: Work) -> ShardReport:
    done = _reuse(job)
    if done:
        return done
    collected = _Collected()
    for number, _ in enumerate(collected.take(_outcomes(job, function))):
        if number == 0:
            job.manifest.unlink(missing_ok=True)  # from here on the folder is half old, half new
    collected.check(job)
    folder = job.folder / job.shard
    _remove_others(folder, {name for name, _, _ in collected.files})
    version = hash_bytes(*(part for name, digest, _ in collected.files for part in (name, digest)))
    written = len(collected.files)
    numbers = {name: round(value / max(1, written), 4) for name, value in collected.sums.items()}
    return _finish(job, collected, written, version, {}, numbers)


def _remove_others(folder: Path, keep: set[str]) -> None:
    """Delete files of images that left the shard, and temporary files of a killed run."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in keep:
            path.unlink()


def _finish(
    job: _Job, collected: _Collected, written: int, version: str, skipped: dict[str, int], numbers: dict[str, float]
) -> ShardReport:
    sheet = contact_sheet(collected.tiles)
    if sheet is not None:
        write_bytes(job.preview, encode_preview(sheet))
    for leftover in job.folder.glob(f".{job.shard}.*.tmp*"):  # of a killed run
        leftover.unlink()
    files, size = _measure(job)
    seconds = time.perf_counter() - collected.started
    common = {"files": float(files), "bytes": float(size), "failed": float(len(collected.failed))}
    report = ShardReport(
        asset=job.asset,
        shard=job.shard,
        fingerprint=job.fingerprint,
        written=written,
        skipped={reason: n for reason, n in skipped.items() if n},
        failed=collected.failed,
        data_version=version,
        numbers=common | numbers | {"seconds": round(seconds, 2)},
        preview=None if sheet is None else job.preview,
    )
    save(report, job.manifest)
    return report


def _groups(outcomes: Iterable[Outcome], size: int) -> Iterator[Sequence[Outcome]]:
    group: list[Outcome] = []
    for outcome in outcomes:
        group.append(outcome)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
