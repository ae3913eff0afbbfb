"""The catalog: one Parquet row per image and per rejected file, with shard and split.

Belongs here: building, writing and reading the catalog. Does not belong here: how one image is examined (`examine`),
how files are found and paired (`inventory`, `k_hairstyle`), what earlier runs found (`remembered`), and summing up
(`summary`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import atomic_path, hash_bytes, hash_file, read_json, write_json
from hair_pipeline.inputs.columns import ALWAYS_FLAGS, EXAMINED, NO_FLAGS, SCHEMA
from hair_pipeline.inputs.examine import REVISION, Candidate, Examiner, Task
from hair_pipeline.inputs.inventory import Inventory, digest, list_files, printable, short_hash
from hair_pipeline.inputs.k_hairstyle import LabelName, Pairing, image_id_of, pair, source_of
from hair_pipeline.inputs.labels import BadLabel, parse_names
from hair_pipeline.inputs.people import key_of, names_of, renamed
from hair_pipeline.inputs.reader import passing_faults, read_bytes
from hair_pipeline.inputs.reasons import Reason
from hair_pipeline.inputs.remembered import PART_ROWS, ExaminedRows, NameOrFault, RememberedNames
from hair_pipeline.inputs.shards import Assignments, assign_shards
from hair_pipeline.inputs.split import assign_splits
from hair_pipeline.inputs.summary import Summary, summarise, with_notes
from hair_pipeline.inputs.training_face import FaceFiles, FaceScan, count_unused, scan_faces
from hair_pipeline.inputs.workers import map_chunks, map_in_processes
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings


@dataclass(frozen=True)
class CatalogResult:
    """What `build_catalog` returns.

    Attributes:
        path: of the catalog.
        summary: counts for people, see `summary`.
        data_version: SHA-256 of the Parquet file.
        unchanged: nothing had changed since the last time, and nothing was done.
    """

    path: Path
    summary: Summary
    data_version: str
    unchanged: bool = False

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The whole catalog, as `read_catalog` gives it."""
        return read_catalog(self.path)


def build_catalog(settings: Settings, profile: Profile) -> CatalogResult:
    """Read both inputs and write `settings.catalog_path`. The inputs' folders are only read.

    The same inputs, settings and earlier assignments give the same bytes. What is found out about a file is kept in
    `processed/catalog_cache`: a file whose size and time are the same is not opened again, and a run that was killed
    goes on where it stopped. A file that could not be read, though it is there, is tried again by the next run. Memory
    holds names, not rows.

    Raises:
        PipelineError: a root is missing or empty, no image is usable, or all images are of one person.
    """
    _check_roots(settings)
    cache = settings.processed / "catalog_cache"
    inventory, faces = _list_inputs(settings, cache)
    _check_found(settings, inventory, faces)
    state = _state(profile, inventory, faces)
    if (done := _unchanged(settings, cache, state)) is not None:
        return done
    found = _pair(settings, inventory, cache)
    tasks = _tasks(found.pairing, inventory, faces.files)
    unused = count_unused(faces, {image_id_of(task.candidates[0].image) for task in tasks})
    unreadable = faces.unreadable
    del faces
    for names in (inventory.stamps, inventory.images, inventory.labels, found.pairing.pairs, found.pairing.images):
        names.clear()  # the tasks hold them now
    signatures = np.fromiter((task.signature for task in tasks), np.uint64, len(tasks))
    rows = ExaminedRows(cache / "examined", _examiner_key(profile))
    fresh = [task for task, missing in zip(tasks, rows.missing(signatures), strict=True) if missing]
    del tasks
    examine = Examiner(settings.k_hairstyle_root, settings.training_face_root, profile.inputs, profile.processing.size)
    rows.add(map_chunks(examine, fresh, description="catalog", chunk=128))
    del fresh
    earlier = _earlier(settings, profile)
    people = _people(rows, signatures, profile.inputs.same_person, earlier, settings)
    assignments = _assign(people, earlier, profile)
    rejected = _rejected(inventory, found, unreadable)
    unread = found.unread + rows.unsettled + inventory.unreadable + len(unreadable)
    notes = {"archives_read": inventory.archives, "faces_without_image": unused, "unread": unread}
    schema = with_notes(SCHEMA, notes)
    with (
        atomic_path(settings.catalog_path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for table in _assigned(rows, signatures, assignments, people.names):
            writer.write_table(table)
        for table in rejected:
            writer.write_table(table)
    assignments.write(_assignments_path(settings))
    rows.tidy(signatures)
    summary = summarise(settings.catalog_path)
    version = hash_file(settings.catalog_path)
    kept = {"state": state, "data_version": version, "assignments": hash_file(_assignments_path(settings))}
    if unread:
        (cache / "state.json").unlink(missing_ok=True)
    else:
        write_json(cache / "state.json", kept | {"summary": summary.as_json()})
    return CatalogResult(settings.catalog_path, summary, version)


def read_catalog(path: Path, shard: str | None = None, columns: list[str] | None = None) -> pd.DataFrame:
    """Read the catalog; missing text and flags are None, missing numbers NaN.

    Args:
        path: `settings.catalog_path`.
        shard: only the accepted images of this shard.
        columns: only these; the whole catalog of 451,000 images takes about 1.5 GB in memory.

    Raises:
        PipelineError: there is no catalog, or it cannot be read.
    """
    filters = None if shard is None else [("shard", "=", shard), ("accepted", "=", True)]
    try:
        table = pq.read_table(path, filters=filters, columns=columns)
    except FileNotFoundError as error:
        raise PipelineError("no such file", file=path, remedy="materialise the asset catalog") from error
    except (pa.ArrowException, OSError) as error:
        remedy = "delete it and materialise the asset catalog again"
        raise PipelineError(f"is not a readable catalog ({error})", file=path, remedy=remedy) from error
    values: dict[str, Any] = {}
    for field in table.schema:
        column = table.column(field.name)
        if field.name in ALWAYS_FLAGS:
            values[field.name] = column.to_numpy().astype(bool)
        elif pa.types.is_floating(field.type) or pa.types.is_integer(field.type):
            values[field.name] = column.to_numpy()
        elif pa.types.is_list(field.type):
            values[field.name] = pd.Series(column.to_pylist(), dtype=object)
        else:
            values[field.name] = pd.Series(column.to_numpy(zero_copy_only=False), dtype=object)
    return pd.DataFrame(values)


def _check_roots(settings: Settings) -> None:
    roots = (
        (settings.k_hairstyle_root, "K_HAIRSTYLE_ROOT", "K-Hairstyle copy"),
        (settings.training_face_root, "TRAINING_FACE_ROOT", "training_face output folder"),
    )
    for root, variable, what in roots:
        if not root.is_dir():
            raise _no_input("no such folder", root, variable, what)
        if settings.training_root.resolve().is_relative_to(root.resolve()):
            raise PipelineError(
                f"the training root {settings.training_root} lies inside this input, which is never written to",
                file=root,
                remedy="set HAIR_PIPELINE_TRAINING_ROOT to a folder outside it",
            )
    photos, faces = (root.resolve() for root, _, _ in roots)
    if photos.is_relative_to(faces) or faces.is_relative_to(photos):
        raise PipelineError(
            f"the training_face outputs in {settings.training_face_root} and these photos lie in one another: pictures "
            "of one would be taken for the other's",
            file=settings.k_hairstyle_root,
            remedy="set HAIR_PIPELINE_K_HAIRSTYLE_ROOT and HAIR_PIPELINE_TRAINING_FACE_ROOT to folders side by side",
        )


def _no_input(what: str, root: Path, variable: str, meant: str) -> PipelineError:
    return PipelineError(what, file=root, remedy=f"set HAIR_PIPELINE_{variable} to your {meant}")


def _list_inputs(settings: Settings, cache: Path) -> tuple[Inventory, FaceScan]:
    """The files of both inputs: this process walks K-Hairstyle while worker processes walk training_face."""
    with ThreadPoolExecutor(max_workers=1) as beside:
        faces = beside.submit(scan_faces, settings.training_face_root)
        inventory = list_files(settings.k_hairstyle_root, cache / "archives.parquet")
        return inventory, faces.result()


def _check_found(settings: Settings, inventory: Inventory, faces: FaceScan) -> None:
    if not inventory.images and not inventory.labels:
        what = "holds no image and no label" + _found_instead(inventory.rejected)
        raise _no_input(what, settings.k_hairstyle_root, "K_HAIRSTYLE_ROOT", "K-Hairstyle copy")
    if all(files.paths[0] in faces.unreadable for files in faces.files.values()):
        remedy = "training_face output folder (<stem>/face_01/*.json)"
        rejected = [(folder, Reason.UNREADABLE_FOLDER, why) for folder, why in sorted(faces.unreadable.items())]
        what = "holds no training_face output" + _found_instead(rejected)
        raise _no_input(what, settings.training_face_root, "TRAINING_FACE_ROOT", remedy)


def _found_instead(rejected: list[tuple[str, Reason, str]]) -> str:
    """What there is besides, by reason, each with an example."""
    counts = Counter(reason for _, reason, _ in rejected)
    examples = {reason: f"{path} {detail}".strip() for path, reason, detail in reversed(rejected)}
    named = [f"{count} {reason} (such as {printable(examples[reason])})" for reason, count in counts.most_common(4)]
    return f", only {', '.join(named)}" if named else ""


def _state(profile: Profile, inventory: Inventory, faces: FaceScan) -> str:
    """A hash of everything the catalog depends on, apart from earlier assignments."""
    rejected = ((path, short_hash(reason)) for path, reason, _ in inventory.rejected)
    parts = (
        digest(inventory.stamps.items()),
        digest(sorted(rejected)),
        digest((stem, faces.files[stem].stamp) for stem in sorted(faces.files)),
        _examiner_key(profile),
        profile.inputs.model_dump_json(),
        ",".join(SCHEMA.names),
    )
    return hash_bytes(*parts)


def _examiner_key(profile: Profile) -> str:
    """What the rows of one image depend on apart from its files."""
    config = profile.inputs
    values = (config.min_face_confidence, config.max_identity_yaw, config.min_mask_iou, config.image_set)
    return hash_bytes(str(REVISION), str(profile.processing.size), str(values), ",".join(EXAMINED.names))[:16]


def _unchanged(settings: Settings, cache: Path, state: str) -> CatalogResult | None:
    """The last result, if it is still there and nothing has changed."""
    paths = (settings.catalog_path, _assignments_path(settings), cache / "state.json")
    if not all(path.exists() for path in paths):
        return None
    try:
        last = read_json(paths[2])
        if last["state"] != state or last["assignments"] != hash_file(paths[1]):
            return None
        if last["data_version"] != hash_file(paths[0]):
            return None
        return CatalogResult(paths[0], Summary.from_json(last["summary"]), last["data_version"], unchanged=True)
    except (PipelineError, KeyError, TypeError):
        return None


class _NameReader:
    """Reads one label's names, and tells whether they are settled; picklable for the worker processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, path: str) -> tuple[NameOrFault, bool]:
        with passing_faults() as faults:
            name = self._read(path)
        return name, not faults

    def _read(self, path: str) -> NameOrFault:
        try:
            return LabelName(path, *parse_names(read_bytes(self.root, path)))
        except BadLabel as error:
            return path, error.reason, error.detail
        except OSError as error:
            return path, Reason.UNREADABLE_LABEL, str(error.strerror)


@dataclass(frozen=True)
class _Found:
    """What pairing came to, the labels that are none (path, reason, detail), and how many could not be read now."""

    pairing: Pairing
    bad_labels: list[tuple[str, Reason, str]]
    unread: int


def _pair(settings: Settings, inventory: Inventory, cache: Path) -> _Found:
    """Read the labels' names, where they are not remembered, and pair labels with images."""
    remembered = RememberedNames(cache / "labels.parquet")
    paths = inventory.labels
    signatures = np.fromiter((short_hash(f"{path}\0{inventory.stamps[path]}") for path in paths), np.uint64, len(paths))
    names = remembered.find(paths, signatures)
    unknown = [number for number, name in enumerate(names) if name is None]
    reader = _NameReader(settings.k_hairstyle_root)
    fresh = map_in_processes(reader, [paths[number] for number in unknown], description="labels", chunk=1000)
    settled = np.ones(len(paths), bool)
    for number, (name, is_settled) in zip(unknown, fresh, strict=True):
        names[number], settled[number] = name, is_settled
    read = [name for name in names if name is not None]
    if unknown or len(read) != remembered.count:
        remembered.keep(signatures[settled], [read[number] for number in np.flatnonzero(settled)])
    bad = [name for name in read if not isinstance(name, LabelName)]
    pairing = pair(inventory.images, (name for name in read if isinstance(name, LabelName)))
    return _Found(pairing, bad, int(np.count_nonzero(~settled)))


def _tasks(pairing: Pairing, inventory: Inventory, faces: dict[str, FaceFiles]) -> list[Task]:
    """One task per image id, with all the files that bear it, in the order of their first path."""
    groups: dict[str, list[Candidate]] = {}
    for image, label in pairing.pairs:
        groups.setdefault(image_id_of(image), []).append(Candidate(image, label.path))
    for image in pairing.images:
        groups.setdefault(image_id_of(image), []).append(Candidate(image, None))
    stamps, none = inventory.stamps, FaceFiles((), 0)
    tasks: list[Task] = []
    for image_id, candidates in groups.items():
        candidates.sort(key=lambda candidate: candidate.image)
        found = faces.get(image_id, none)
        marks = [f"{image}\0{stamps[image]}\0{label}\0{stamps.get(label or '')}" for image, label in candidates]
        tasks.append(Task(tuple(candidates), found.paths, short_hash("\0".join([*marks, str(found.stamp)]))))
    tasks.sort(key=lambda task: task.candidates[0].image)
    return tasks


_DECISIVE = ("source", "accepted", "reason", "stage2", "identity_reliable")


@dataclass(frozen=True)
class _People:
    """People with accepted images.

    Attributes:
        images: name -> how many.
        usefulness: name -> 2: a reliable identity, 1: Stage 2, 0: neither.
        names: as `people.names_of` gives them.
    """

    images: dict[str, int]
    usefulness: dict[str, int]
    names: dict[str, str]


def _people(
    rows: ExaminedRows, signatures: np.ndarray, same_person: dict[str, str], earlier: Assignments, settings: Settings
) -> _People:
    found: Counter[str] = Counter()
    ranks: dict[str, int] = {}
    reasons: Counter[str] = Counter()
    for block in _blocks(signatures):
        table = rows.rows(block, _DECISIVE)
        reasons.update(table.column("reason").drop_null().to_pylist())
        accepted = table.filter(table.column("accepted"))
        sources = accepted.column("source").to_pylist()
        stage2 = accepted.column("stage2").to_numpy(zero_copy_only=False).astype(int)
        reliable = accepted.column("identity_reliable").to_numpy(zero_copy_only=False).astype(int)
        found.update(sources)
        for source, rank in zip(sources, (stage2 + stage2 * reliable).tolist(), strict=True):
            ranks[source] = max(ranks.get(source, 0), rank)
    names = names_of(found, earlier.shards, same_person)
    images: Counter[str] = Counter()
    usefulness: dict[str, int] = {}
    for source, count in found.items():
        name = names[key_of(source)]
        images[name] += count
        usefulness[name] = max(usefulness.get(name, 0), ranks[source])
    _check_people(len(images), reasons, settings)
    return _People(dict(images), usefulness, names)


def _blocks(signatures: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(signatures), PART_ROWS):
        yield signatures[start : start + PART_ROWS]


def _check_people(people: int, reasons: Counter[str], settings: Settings) -> None:
    if people >= 2:
        return
    found = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common(4)) or "nothing else"
    what = f"{'no' if not people else 'only one'} person has a usable image (rejected: {found})"
    remedy = "point HAIR_PIPELINE_K_HAIRSTYLE_ROOT at photos of at least two people, with their labels"
    raise PipelineError(what, file=settings.k_hairstyle_root, remedy=remedy)


def _assignments_path(settings: Settings) -> Path:
    return settings.processed / "assignments.json"


def _earlier(settings: Settings, profile: Profile) -> Assignments:
    """The assignments of earlier runs; where their file is gone, the last catalog's."""
    earlier = Assignments.read(_assignments_path(settings))
    if not earlier.shards and settings.catalog_path.exists():
        config = profile.inputs
        return Assignments.of_catalog(settings.catalog_path, config.validation_fraction, config.split_seed)
    return earlier


def _assign(people: _People, earlier: Assignments, profile: Profile) -> Assignments:
    """Shard and split of every person, those of earlier runs kept."""
    config = profile.inputs
    same_split = (earlier.fraction, earlier.seed) == (config.validation_fraction, config.split_seed)
    known = earlier.splits if same_split else {}
    shards = assign_shards(people.images, config.shard_size, earlier.shards)
    splits = assign_splits(people.usefulness, config.validation_fraction, config.split_seed, known)
    return Assignments(earlier.shards | shards, known | splits, config.validation_fraction, config.split_seed)


def _assigned(
    rows: ExaminedRows, signatures: np.ndarray, assignments: Assignments, names: dict[str, str]
) -> Iterator[pa.Table]:
    """The examined rows with each person's one name, shard and split."""
    for block in _blocks(signatures):
        table = rows.rows(block)
        sources = renamed(table.column("source"), names)
        table = table.set_column(table.schema.get_field_index("source"), "source", sources)
        places = list(zip(sources.to_pylist(), table.column("accepted").to_pylist(), strict=True))
        for name, of in (("shard", assignments.shards), ("split", assignments.splits)):
            values = [of[source] if accepted else None for source, accepted in places]
            table = table.append_column(name, pa.array(values, pa.string()))
        yield table.cast(SCHEMA)


def _rejected(inventory: Inventory, found: _Found, unreadable_faces: dict[str, str]) -> Iterator[pa.Table]:
    """Rows of what was never examined: labels without an image, bad labels, what is neither, and folders of
    training_face that could not be listed."""
    fates: list[tuple[str | None, str | None, Reason, str]]
    fates = [(None, label.path, reason, detail) for label, reason, detail in found.pairing.labels]
    fates += [(None, path, reason, detail) for path, reason, detail in found.bad_labels]
    fates += [(printable(path), None, reason, detail) for path, reason, detail in inventory.rejected]
    fates.sort(key=lambda fate: (fate[0] or fate[1] or "", fate[2]))
    for start in range(0, len(fates), PART_ROWS):
        part = fates[start : start + PART_ROWS]
        rows = [_rejected_row(*fate) for fate in part]
        yield pa.Table.from_pylist(rows, schema=SCHEMA)
    rows = [_unreadable_row(folder, why) for folder, why in sorted(unreadable_faces.items())]
    yield pa.Table.from_pylist(rows, schema=SCHEMA)


def _rejected_row(image: str | None, label: str | None, reason: Reason, detail: str) -> dict[str, Any]:
    path = image or label or ""
    known = {"image_id": image_id_of(path), "source": source_of(path), "image_path": image, "label_path": label}
    return NO_FLAGS | known | {"reason": reason.value, "detail": detail or None}


def _unreadable_row(folder: str, why: str) -> dict[str, Any]:
    path = printable(folder.rstrip("/"))
    known = {"image_id": image_id_of(path), "face_path": path, "reason": Reason.UNREADABLE_FOLDER.value}
    return NO_FLAGS | known | {"detail": why}
