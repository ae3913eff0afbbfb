"""The catalog: one Parquet row per image and per rejected file, with shard and split.

Belongs here: building, writing, reading and summing up the catalog. Does not belong here: how one image is
examined (`examine`) and how files are found and paired (`k_hairstyle`).
"""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import hash_bytes, write_bytes
from hair_pipeline.inputs.examine import Examiner, Task
from hair_pipeline.inputs.k_hairstyle import LabelName, Listing, Pairing, image_id_of, list_files, pair, source_of
from hair_pipeline.inputs.labels import BadLabel, parse_names
from hair_pipeline.inputs.reasons import Reason
from hair_pipeline.inputs.shards import Assignments, assign_shards
from hair_pipeline.inputs.split import assign_splits
from hair_pipeline.inputs.training_face import index_faces
from hair_pipeline.inputs.workers import map_in_processes
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings
from hair_pipeline.vocabulary import ATTRIBUTES

_TEXT, _FLAG, _NUMBER, _WHOLE = pa.string(), pa.bool_(), pa.float64(), pa.int32()
SCHEMA = pa.schema(
    {
        "image_id": _TEXT,
        "source": _TEXT,
        "accepted": _FLAG,
        "reason": _TEXT,
        "detail": _TEXT,
        "image_path": _TEXT,
        "label_path": _TEXT,
        "width": _WHOLE,
        "height": _WHOLE,
        **dict.fromkeys(ATTRIBUTES, _TEXT),
        "curl_class": _TEXT,
        "has_bangs": _FLAG,
        "front": _FLAG,
        "horizontal": _NUMBER,
        "age": _WHOLE,
        "rgb": pa.list_(pa.float64()),
        "label_problems": _TEXT,
        "mask_origin": _TEXT,
        "hair_fraction": _NUMBER,
        "mask_iou": _NUMBER,
        "masks_disagree": _FLAG,
        "face_blurred": _FLAG,
        "has_face": _FLAG,
        "faces_found": _WHOLE,
        "face_id": _WHOLE,
        "face_path": _TEXT,
        "sheet_path": _TEXT,
        "embedding_path": _TEXT,
        "face_reason": _TEXT,
        "face_detail": _TEXT,
        **dict.fromkeys(("box_x1", "box_y1", "box_x2", "box_y2"), _NUMBER),
        **dict.fromkeys(("yaw", "pitch", "roll", "face_confidence"), _NUMBER),
        "embedding_model": _TEXT,
        "identity_reliable": _FLAG,
        "identity_reason": _TEXT,
        "stage2": _FLAG,
        "stage2_reason": _TEXT,
        "scale": _NUMBER,
        "offset_x": _WHOLE,
        "offset_y": _WHOLE,
        "largest_path": _TEXT,
        "largest_label_path": _TEXT,
        "largest_width": _WHOLE,
        "largest_height": _WHOLE,
        "content_hash": _TEXT,
        "shard": _TEXT,
        "split": _TEXT,
    }
)
"""Columns and types; paths are relative to k_hairstyle_root (image, label) and training_face_root (the others)."""

_ALWAYS_FLAGS = ("accepted", "has_face", "identity_reliable", "stage2", "face_blurred")
_SUMMARY_COLUMNS = ("mask_origin", "split", "shard", "curl_class", "has_bangs", "length", "color", "sex")


@dataclass(frozen=True)
class CatalogResult:
    """What `build_catalog` returns.

    Attributes:
        frame: the catalog, as `read_catalog` gives it.
        summary: group -> name -> count, see `summarise`.
        data_version: SHA-256 of the Parquet file.
    """

    frame: pd.DataFrame
    summary: dict[str, dict[str, int]]
    data_version: str


def build_catalog(settings: Settings, profile: Profile) -> CatalogResult:
    """Read both inputs and write `settings.catalog_path`. The inputs' folders are only read.

    The same inputs, settings and earlier assignments give the same bytes.

    Raises:
        PipelineError: a root is missing or empty, no image is usable, or all images are of one person.
    """
    _check_roots(settings)
    listing = list_files(settings.k_hairstyle_root)
    if not listing.images and not listing.labels:
        archives = sum(reason == Reason.ARCHIVE for _, reason in listing.rejected)
        what = "holds no image and no label" + (f", only {archives} archives: unpack them" if archives else "")
        raise _no_input(what, settings.k_hairstyle_root, "K_HAIRSTYLE_ROOT", "K-Hairstyle copy")
    faces = index_faces(settings.training_face_root)
    if not faces:
        remedy = "training_face output folder (<stem>/face_01/*.json)"
        raise _no_input("holds no training_face output", settings.training_face_root, "TRAINING_FACE_ROOT", remedy)
    names, bad_labels = _read_label_names(settings.k_hairstyle_root, listing.labels)
    pairing = pair(listing.images, names)
    tasks = [Task(image, label.path, tuple(faces.get(image_id_of(image), ()))) for image, label in pairing.pairs]
    size = profile.processing.size
    examine = Examiner(settings.k_hairstyle_root, settings.training_face_root, profile.inputs, size)
    rows = list(map_in_processes(examine, tasks, description="catalog"))
    _reject_duplicates(rows)
    rows += _rejected_rows(settings.k_hairstyle_root, listing, pairing, bad_labels)
    _check_people(rows, settings)
    assignments = _assign(rows, settings, profile)
    data = _encode(rows)
    write_bytes(settings.catalog_path, data)
    assignments.write(_assignments_path(settings))
    frame = read_catalog(settings.catalog_path)
    return CatalogResult(frame, summarise(frame), hash_bytes(data))


def read_catalog(path: Path, shard: str | None = None) -> pd.DataFrame:
    """Read the catalog; missing text and flags are None, missing numbers NaN.

    Args:
        path: `settings.catalog_path`.
        shard: only the accepted images of this shard.

    Raises:
        PipelineError: there is no catalog, or it cannot be read.
    """
    filters = None if shard is None else [("shard", "=", shard), ("accepted", "=", True)]
    try:
        table = pq.read_table(path, filters=filters)
    except FileNotFoundError as error:
        raise PipelineError("no such file", file=path, remedy="materialise the asset catalog") from error
    except (pa.ArrowException, OSError) as error:
        remedy = "delete it and materialise the asset catalog again"
        raise PipelineError(f"is not a readable catalog ({error})", file=path, remedy=remedy) from error
    columns: dict[str, Any] = {}
    for field in table.schema:
        column = table.column(field.name)
        if field.name in _ALWAYS_FLAGS:
            columns[field.name] = column.to_numpy().astype(bool)
        elif pa.types.is_floating(field.type) or (pa.types.is_integer(field.type)):
            columns[field.name] = column.to_numpy()
        else:
            columns[field.name] = pd.Series(column.to_pylist(), dtype=object)
    return pd.DataFrame(columns)


def summarise(frame: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Counts for people: files, rejections by reason, identity and Stage 2 by reason, masks, split, attributes."""
    accepted = frame[frame.accepted]
    sets = [_release_split(path) for path in accepted.image_path]
    both = _people_in_both(accepted.source.tolist(), sets)
    counts: dict[str, dict[str, int]] = {
        "files": {
            "found": int(frame.image_path.notna().sum() + frame.label_path.notna().sum()),
            "images_accepted": len(accepted),
            "rows_rejected": len(frame) - len(accepted),
        },
        "rejected": _count(frame.reason[~frame.accepted]),
        "people": {"people": accepted.source.nunique(), "in_training_and_validation": both}
        | {str(side): int(n) for side, n in accepted.groupby("split").source.nunique().items()},
        "face": _count(accepted.face_reason.fillna("usable")),
        "identity": _count(accepted.identity_reason.fillna("reliable")),
        "stage2": _count(accepted.stage2_reason.fillna("eligible")),
        "mask_agreement": {
            "compared": int(accepted.mask_iou.notna().sum()),
            "disagree": int((accepted.masks_disagree == True).sum()),  # noqa: E712 (None is neither)
        },
        "label_problems": _count(
            pd.Series([text for row in accepted.label_problems.dropna() for text in row.split("; ")])
        ),
    }
    return counts | {name: _count(accepted[name].fillna("missing")) for name in _SUMMARY_COLUMNS}


def _count(values: pd.Series) -> dict[str, int]:
    return {str(name): n for name, n in sorted(Counter(values.tolist()).items(), key=lambda item: str(item[0]))}


def _release_split(path: str) -> str:
    parts = {part.lower() for part in path.split("/")[:-1]}
    return "validation" if "validation" in parts else "training" if "training" in parts else ""


def _people_in_both(sources: list[str], sets: list[str]) -> int:
    named = {(source, name) for source, name in zip(sources, sets, strict=True) if name}
    return sum(n > 1 for n in Counter(source for source, _ in named).values())


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


def _no_input(what: str, root: Path, variable: str, meant: str) -> PipelineError:
    return PipelineError(what, file=root, remedy=f"set HAIR_PIPELINE_{variable} to your {meant}")


class _NameReader:
    """Reads one label's names; picklable for the worker processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, path: str) -> LabelName | tuple[str, Reason, str]:
        try:
            return LabelName(path, *parse_names((self.root / path).read_bytes()))
        except BadLabel as error:
            return path, error.reason, error.detail
        except OSError as error:
            return path, Reason.UNREADABLE_LABEL, str(error.strerror)


def _read_label_names(root: Path, paths: list[str]) -> tuple[list[LabelName], list[tuple[str, Reason, str]]]:
    names: list[LabelName] = []
    bad: list[tuple[str, Reason, str]] = []
    for found in map_in_processes(_NameReader(root), paths, description="labels", chunk=2000):
        names.append(found) if isinstance(found, LabelName) else bad.append(found)
    return names, bad


def _reject_duplicates(rows: list[dict[str, Any]]) -> None:
    """Of accepted rows with one image id the one that training_face saw stays, else the largest, else the first."""
    kept: dict[str, str] = {}
    accepted = [row for row in rows if row["accepted"]]
    for row in sorted(accepted, key=lambda row: (not row["stage2"], -row["width"] * row["height"], row["image_path"])):
        first = kept.setdefault(row["image_id"], row["image_path"])
        if first != row["image_path"]:
            row |= {"accepted": False, "reason": Reason.DUPLICATE_IMAGE.value, "detail": f"kept {first}"}


def _rejected_rows(
    root: Path, listing: Listing, pairing: Pairing, bad_labels: list[tuple[str, Reason, str]]
) -> list[dict[str, Any]]:
    """Rows for files outside any pair."""
    rows = [_row(image=path, reason=_why_unpaired(root / path)) for path in pairing.images]
    rows += [_row(label=name.path, reason=reason, detail=detail) for name, reason, detail in pairing.labels]
    rows += [_row(label=path, reason=reason, detail=detail) for path, reason, detail in bad_labels]
    return rows + [_row(image=_printable(path), reason=reason) for path, reason in listing.rejected]


def _why_unpaired(path: Path) -> Reason:
    """An image without a label may be one of the JSON labels named .jpg, or no image at all."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return Reason.UNREADABLE_IMAGE
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        return Reason.IMAGE_WITHOUT_LABEL
    is_json = head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"["))
    return Reason.JSON_AS_IMAGE if is_json else Reason.NOT_AN_IMAGE


def _row(reason: Reason, *, image: str | None = None, label: str | None = None, detail: str = "") -> dict[str, Any]:
    path = image or label or ""
    return {
        "image_id": image_id_of(path),
        "source": source_of(path),
        "accepted": False,
        "reason": reason.value,
        "detail": detail or None,
        "image_path": image,
        "label_path": label,
    }


def _printable(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _check_people(rows: list[dict[str, Any]], settings: Settings) -> None:
    people = {row["source"] for row in rows if row["accepted"]}
    if len(people) >= 2:
        return
    reasons = Counter(row["reason"] for row in rows if not row["accepted"])
    found = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common(4)) or "nothing else"
    what = f"{'no' if not people else 'only one'} person has a usable image (rejected: {found})"
    remedy = "point HAIR_PIPELINE_K_HAIRSTYLE_ROOT at photos of at least two people, with their labels"
    raise PipelineError(what, file=settings.k_hairstyle_root, remedy=remedy)


def _assignments_path(settings: Settings) -> Path:
    return settings.processed / "assignments.json"


def _assign(rows: list[dict[str, Any]], settings: Settings, profile: Profile) -> Assignments:
    """Fill shard and split of the accepted rows."""
    config = profile.inputs
    images: Counter[str] = Counter()
    usefulness: dict[str, int] = {}
    for row in rows:
        if row["accepted"]:
            images[row["source"]] += 1
            rank = row["stage2"] + (row["stage2"] and row["identity_reliable"])
            usefulness[row["source"]] = max(usefulness.get(row["source"], 0), rank)
    earlier = Assignments.read(_assignments_path(settings))
    same_split = (earlier.fraction, earlier.seed) == (config.validation_fraction, config.split_seed)
    known = earlier.splits if same_split else {}
    shards = assign_shards(images, config.shard_size, earlier.shards)
    splits = assign_splits(usefulness, config.validation_fraction, config.split_seed, known)
    for row in rows:
        if row["accepted"]:
            row |= {"shard": shards[row["source"]], "split": splits[row["source"]]}
    return Assignments(earlier.shards | shards, known | splits, config.validation_fraction, config.split_seed)


def _encode(rows: list[dict[str, Any]]) -> bytes:
    """The Parquet bytes, rows sorted by path."""
    flags = dict.fromkeys(_ALWAYS_FLAGS, False)
    ordered = sorted(rows, key=lambda row: (row["image_path"] or row["label_path"], row["label_path"] or ""))
    table = pa.Table.from_pylist([flags | row for row in ordered], schema=SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
