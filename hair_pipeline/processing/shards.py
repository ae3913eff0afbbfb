"""One shard of the processed assets: every image through a process pool, results on disk, a manifest beside them.

Belongs here: the assets' shard functions and what they share (fingerprint, reuse, resuming, failures, stale files).
Does not belong here: how one image is changed (`work` and below) and Dagster.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import (
    atomic_path,
    decode_image,
    hash_bytes,
    hash_file,
    make_folder,
    one_at_a_time,
    read_image,
    remove,
    sync_files,
    write_bytes,
)
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.samples import InputRoots
from hair_pipeline.inputs.workers import map_in_processes
from hair_pipeline.processing import identity, journal, shard_pictures
from hair_pipeline.processing.own_files import images_in, leftovers_in
from hair_pipeline.processing.patch_rows import PATCH_SCHEMA, as_table, unpack
from hair_pipeline.processing.previews import encode_preview
from hair_pipeline.processing.report import ShardReport, reusable, save
from hair_pipeline.processing.work import ROW_COLUMNS, Made, Outcome, Picture, Target, Worker
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings

ALGORITHM_VERSION = 8
"""Raised when the code makes other pixels from the same inputs and settings, so that shards are done again."""
IMAGE_PARTS = ("bald_images", "hair_only_images", "hair_patches")
"""Assets made of one image at a time, all of them while it is in memory."""
ROWS_PER_GROUP = 64
"""Images per row group of a patch table."""
_FINGERPRINTED = (
    "image_id",
    "source",
    "content_hash",
    "largest_path",
    "mask_origin",
    "stage2",
    "identity_reason",
    "curl",
    "curl_class",
)


@dataclass
class _Job:
    """A shard of one asset about to be made."""

    asset: str
    shard: str
    settings: Settings
    rows: pd.DataFrame
    fingerprint: str
    made: dict[str, Made] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @property
    def folder(self) -> Path:
        return self.settings.processed / self.asset

    @property
    def images(self) -> Path | None:
        """Where its image files go; None when it makes a table."""
        return self.folder / self.shard if self.asset in ("bald_images", "hair_only_images") else None

    @property
    def manifest(self) -> Path:
        return self.folder / f"{self.shard}.json"

    @property
    def table(self) -> Path:
        return self.folder / f"{self.shard}.parquet"

    @property
    def journal(self) -> Path:
        return self.folder / f".{self.shard}.{self.fingerprint[:16]}.journal"

    @property
    def journals(self) -> str:
        """Pattern of this shard's journals, under whatever settings."""
        return f".{self.shard}.*.journal"


def make_bald_images(shard: str, settings: Settings, profile: Profile) -> ShardReport:
    """Write `bald_images/<shard>/<image_id>.jpg|.png`: RGB, hair removed and filled. Raises as `make_image_parts`."""
    return make_image_parts(shard, settings, profile, ("bald_images",))["bald_images"]


def make_hair_only_images(shard: str, settings: Settings, profile: Profile) -> ShardReport:
    """Write `hair_only_images/<shard>/<image_id>.webp|.png`: RGBA, RGB zero where alpha is 0. Raises as above."""
    return make_image_parts(shard, settings, profile, ("hair_only_images",))["hair_only_images"]


def cut_hair_patches(shard: str, settings: Settings, profile: Profile) -> ShardReport:
    """Write `hair_patches/<shard>.parquet` (`PATCH_SCHEMA`), one row per patch. Raises as above."""
    return make_image_parts(shard, settings, profile, ("hair_patches",))["hair_patches"]


def make_image_parts(
    shard: str, settings: Settings, profile: Profile, assets: Collection[str] = IMAGE_PARTS
) -> dict[str, ShardReport]:
    """Make some of `IMAGE_PARTS` for a shard, decoding each photo, label and sheet once for all of them.

    What is up to date is left alone. Killed at any moment and called again, it goes on behind the last finished image
    and ends with the same bytes. Called again after images have failed, it tries these alone. Of two runs that come to
    the same shard, one waits for the other.

    Returns:
        Asset -> report.

    Raises:
        PipelineError: no such shard, output cannot be written, or not one image could be read.
    """
    config = profile.processing
    concerns: dict[str, dict[str, Any]] = {
        "bald_images": config.bald.model_dump(),
        "hair_only_images": config.hair_only.model_dump(),
        "hair_patches": config.patches.model_dump(),
    }
    rows = _read_rows(shard, settings)
    jobs = [_job(asset, shard, rows, settings, profile, concerns[asset]) for asset in assets]
    reports = _up_to_date(jobs)
    if len(reports) < len(jobs):
        with one_at_a_time(settings.processed / ".locks" / f"{shard}.lock"):
            reports = _up_to_date(jobs)  # by another run in the meantime
            reports |= _make_missing([job for job in jobs if job.asset not in reports], profile)
    return {asset: reports[asset] for asset in assets}


def _up_to_date(jobs: Sequence[_Job]) -> dict[str, ShardReport]:
    return {job.asset: report for job in jobs if (report := _reuse(job)) is not None}


def _make_missing(missing: Sequence[_Job], profile: Profile) -> dict[str, ShardReport]:
    """Asset -> report."""
    if not missing:
        return {}
    _make(missing, profile)
    for job in missing:
        _refuse_nothing(job)
    shown: dict[str, Picture] = {}
    reports: dict[str, ShardReport] = {}
    for job in missing:
        finish = _finish_table if job.images is None else _finish_images
        reports[job.asset] = finish(job, profile, shown)
    return reports


def _make(jobs: Sequence[_Job], profile: Profile) -> None:
    """Bring the jobs' images through the workers; fills `made` and `failed`."""
    for job in jobs:
        make_folder(job.images or job.folder)
        journal.prepare(job.journal, job.journals)
        job.made = _finished_before(job)
    settings = jobs[0].settings
    worker = Worker(
        InputRoots(settings.k_hairstyle_root, settings.training_face_root),
        profile.processing,
        tuple(Target(job.asset, job.images, job.journal) for job in jobs),
    )
    by_asset = {job.asset: job for job in jobs}
    description = f"{' '.join(by_asset)} {jobs[0].shard}"
    outcomes: Iterator[Outcome] = map_in_processes(worker, _Items(jobs), description=description)
    for outcome in outcomes:
        for asset, made in outcome.made.items():
            job = by_asset[asset]
            if not job.made:
                remove(job.manifest)  # from here on the folder is half old, half new
            job.made[outcome.image_id] = made
        for asset, why in outcome.failed.items():
            by_asset[asset].failed[outcome.image_id] = why


def _finished_before(job: _Job) -> dict[str, Made]:
    """Images that a killed run finished, by the journal; those whose file is not as recorded are left out."""
    finished: dict[str, Made] = {}
    for record in journal.read(job.journal):
        made = Made.from_record(record.facts)
        if job.images is None or (made.file is not None and _is_whole(job.images / made.file[0], *made.file[1:])):
            finished[made.image_id] = made
    return finished


def _is_whole(path: Path, digest: str, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size and hash_bytes(path.read_bytes()) == digest


class _Items(Sequence[Any]):
    """A worker's items: rows with the assets they still lack, built when asked for, so that memory stays flat."""

    def __init__(self, jobs: Sequence[_Job]) -> None:
        rows = jobs[0].rows
        self._columns = {name: rows[name].to_numpy() for name in ROW_COLUMNS}
        self._lacks = [
            tuple(job.asset for job in jobs if image_id not in job.made) for image_id in rows.image_id.tolist()
        ]
        self._places = [place for place, lacks in enumerate(self._lacks) if lacks]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._item(place) for place in self._places[index]]
        return self._item(self._places[index])

    def _item(self, place: int) -> tuple[SimpleNamespace, tuple[str, ...]]:
        return namespace(self._columns, place), self._lacks[place]


def namespace(columns: dict[str, np.ndarray], place: int) -> SimpleNamespace:
    """A catalog row as plain values."""
    values = {name: column[place] for name, column in columns.items()}
    return SimpleNamespace(**{k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()})


def gather_identity_embeddings(shard: str, settings: Settings, profile: Profile) -> ShardReport:
    """Write `identity_embeddings/<shard>.parquet` (`identity.SCHEMA`): training_face's embeddings, checked."""
    job = _job("identity_embeddings", shard, _read_rows(shard, settings, None), settings, profile, {})
    done = _reuse(job)
    if done:
        return done
    gathered = identity.gather(job.rows, settings)
    buffer = io.BytesIO()
    pq.write_table(gathered.table(), buffer, compression="zstd")
    write_bytes(job.table, buffer.getvalue())
    persons, cosines = gathered.similarities()
    picture = identity.picture(cosines)
    _show(picture, _preview_path(job))
    numbers = {"reliable": float(len(persons)), **identity.agreement(persons, cosines)}
    job.failed = gathered.failed
    left_out = {reason: sorted(images) for reason, images in gathered.skipped.items()}
    return _finish(job, len(gathered.rows), hash_file(job.table), left_out, numbers)


# What the shard functions share.


def _read_rows(shard: str, settings: Settings, columns: Sequence[str] | None = ROW_COLUMNS) -> pd.DataFrame:
    names = None if columns is None else [*dict.fromkeys((*columns, *_FINGERPRINTED))]
    rows = read_catalog(settings.catalog_path, shard, names)
    if rows.empty:
        remedy = "materialise the asset catalog and choose one of its shards"
        raise PipelineError(f"no image is in {shard!r}", file=settings.catalog_path, remedy=remedy)
    return rows


def _job(
    asset: str, shard: str, rows: pd.DataFrame, settings: Settings, profile: Profile, config: dict[str, Any]
) -> _Job:
    common = {"size": profile.processing.size, "image_format": profile.processing.image_format}
    parts = json.dumps(rows[list(_FINGERPRINTED)].astype(object).to_numpy().tolist())
    fingerprint = hash_bytes(asset, str(ALGORITHM_VERSION), json.dumps(common | config, sort_keys=True), parts)
    return _Job(asset, shard, settings, rows, fingerprint)


def _reuse(job: _Job) -> ShardReport | None:
    """The earlier report, when inputs and settings are the same and the output is still there, whole."""
    report = reusable(job.manifest, job.fingerprint)
    if report is None or _measure(job) != (report.numbers.get("files"), report.numbers.get("bytes")):
        return None
    journal.remove(job.journal, job.journals)
    return report


def _measure(job: _Job) -> tuple[int, int]:
    """Number and bytes of the output files on disk."""
    files = images_in(job.images) if job.images is not None else [job.table] if job.table.exists() else []
    return len(files), sum(path.stat().st_size for path in files)


def _refuse_nothing(job: _Job) -> None:
    """Refuse to replace a shard by nothing.

    Raises:
        PipelineError: every image failed.
    """
    if job.made or not job.failed:
        return
    journal.remove(job.journal, job.journals)
    image_id, reason = next(iter(job.failed.items()))
    what = f"{job.asset}: none of the {len(job.failed)} images of {job.shard} could be used ({image_id}: {reason})"
    remedy = "check the input roots, or materialise the catalog again if the inputs changed"
    raise PipelineError(what, file=job.settings.k_hairstyle_root, remedy=remedy)


def _finish_images(job: _Job, profile: Profile, shown: dict[str, Picture]) -> ShardReport:
    assert job.images is not None
    folder = job.images
    ordered = _ordered(job)
    files = [made.file for made in ordered if made.file is not None]
    _remove_others(folder, {name for name, _, _ in files})
    sync_files(folder / name for name, _, _ in files)
    version = hash_bytes(*(part for name, digest, _ in files for part in (name, digest)))
    numbers = {name: round(value / max(1, len(files)), 4) for name, value in _sums(ordered).items()}

    def product(image_id: str) -> np.ndarray | None:
        name = job.made[image_id].file
        return None if name is None else read_image(folder / name[0], alpha=job.asset == "hair_only_images")

    _draw(job, profile, shown, product)
    return _finish(job, len(files), version, {}, numbers)


def _finish_table(job: _Job, profile: Profile, shown: dict[str, Picture]) -> ShardReport:
    ordered = _ordered(job)
    records = {record.facts["image_id"]: record for record in journal.read(job.journal)}

    def product(image_id: str) -> np.ndarray | None:
        patches = unpack(records[image_id].blob())["image"]
        return decode_image(patches[0]) if patches else None

    with atomic_path(job.table) as path, pq.ParquetWriter(path, PATCH_SCHEMA, compression=_COMPRESSION) as writer:
        for start in range(0, len(ordered), ROWS_PER_GROUP):
            images = [made.image_id for made in ordered[start : start + ROWS_PER_GROUP]]
            group = as_table([records[image_id].blob() for image_id in images])
            if len(group):
                writer.write_table(group)
    left_out: dict[str, list[str]] = {}
    for made in ordered:
        for reason in made.left_out:
            left_out.setdefault(reason, []).append(made.image_id)
    sums = _sums(ordered)
    written = int(sum(value for name, value in sums.items() if name.startswith("patches_")))
    _draw(job, profile, shown, product)
    return _finish(job, written, hash_file(job.table), left_out, sums)


_COMPRESSION = {name: "none" if name == "image" else "zstd" for name in PATCH_SCHEMA.names}


def _ordered(job: _Job) -> list[Made]:
    """What was made, in catalog order."""
    return [job.made[image_id] for image_id in job.rows.image_id.tolist() if image_id in job.made]


def _sums(ordered: Sequence[Made]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for made in ordered:
        for name, value in made.numbers.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums


def _remove_others(folder: Path, keep: set[str]) -> None:
    """Delete files of images that left the shard, and temporary files of a killed run."""
    for path in (*images_in(folder), *leftovers_in(folder)):
        if path.name not in keep:
            remove(path)


def _draw(job: _Job, profile: Profile, shown: dict[str, Picture], product: Callable[[str], np.ndarray | None]) -> None:
    """Write the contact sheet, and the steps of one image; a picture that cannot be drawn is left out.

    Args:
        shown: image id -> picture; the same ones are shown of the next asset.
        product: image id -> what was made of it.
    """
    roots = InputRoots(job.settings.k_hairstyle_root, job.settings.training_face_root)
    ids = job.rows.image_id.tolist()
    usable = [place for place, image_id in enumerate(ids) if image_id in job.made]
    columns = {name: job.rows[name].to_numpy() for name in ROW_COLUMNS}
    chosen = usable[:: -(-len(usable) // shard_pictures.IMAGES)]
    for place in chosen:
        if ids[place] not in shown:
            shown[ids[place]] = Picture(namespace(columns, place), roots, profile.processing.size)
    pictures = [shown[ids[place]] for place in chosen]
    with_face = next((number for number, place in enumerate(chosen) if bool(columns["stage2"][place])), 0)
    sheet, steps = shard_pictures.draw(job.asset, pictures, product, with_face, profile.processing)
    _show(sheet, _preview_path(job))
    _show(steps, _steps_path(job))


def _show(picture: np.ndarray | None, path: Path) -> None:
    """Write a picture; of nothing to show, take an earlier one away."""
    if picture is None:
        remove(path)
    else:
        write_bytes(path, encode_preview(picture))


def _preview_path(job: _Job) -> Path:
    return job.folder / f"{job.shard}.preview.jpg"


def _steps_path(job: _Job) -> Path:
    return job.folder / f"{job.shard}.steps.jpg"


def _finish(
    job: _Job, written: int, version: str, left_out: dict[str, list[str]], numbers: dict[str, float]
) -> ShardReport:
    for leftover in leftovers_in(job.folder):
        if leftover.name.startswith(f".{job.shard}."):
            remove(leftover)
    files, size = _measure(job)
    seconds = time.perf_counter() - job.started
    common = {"files": float(files), "bytes": float(size), "failed": float(len(job.failed))}
    report = ShardReport(
        asset=job.asset,
        shard=job.shard,
        fingerprint=job.fingerprint,
        written=written,
        skipped={reason: len(images) for reason, images in sorted(left_out.items())},
        left_out=dict(sorted(left_out.items())),
        failed=dict(sorted(job.failed.items())),
        data_version=version,
        numbers=common | numbers | {"seconds": round(seconds, 2)},
        preview=path if (path := _preview_path(job)).exists() else None,
        steps=path if (path := _steps_path(job)).exists() else None,
    )
    save(report, job.manifest)
    if not job.failed:
        journal.remove(job.journal, job.journals)
    return report
