"""The catalog summed up: what became of the files, of which people, and how train and validation compare.

Belongs here: counting, from the Parquet file's columns. Does not belong here: building the catalog, and how the
tables are shown (`orchestration`, `cli`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hair_pipeline.errors import PipelineError
from hair_pipeline.vocabulary import ATTRIBUTES

_ATTRIBUTES = ("curl_class", "has_bangs", *ATTRIBUTES)
_REPEATED = (
    *("source", "reason", "shard", "split", "mask_origin", "face_reason", "identity_reason", "stage2_reason"),
    *("label_problems", "curl_class", *ATTRIBUTES),
)
"""Columns of few values, kept in memory as codes; the paths, of which each is another, are read one by one."""
_COLUMNS = (*_REPEATED, "has_bangs", "accepted", "mask_iou", "masks_disagree", "faces_found", "width", "height")
_MISSING = "missing"
_NOTES = b"hair_pipeline.files"


@dataclass(frozen=True)
class Share:
    """How often one attribute value occurs among the accepted images of each side of the split; shares 0-1."""

    attribute: str
    value: str
    train: float
    validation: float

    @property
    def difference(self) -> float:
        """Validation minus train."""
        return self.validation - self.train


@dataclass(frozen=True)
class Summary:
    """The catalog in numbers.

    Attributes:
        counts: group -> name -> count. Groups: files, rejected, people, mask_origin, mask_agreement, face, identity,
            stage2, split, photo_size, patches_from, label_problems and every attribute.
        shares: per attribute value, train against validation.
        mask_iou: quantiles of the agreement of training_face's hair mask with polygon1 ("0.05", "0.5", "0.95").
    """

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    shares: list[Share] = field(default_factory=list)
    mask_iou: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, group: str) -> dict[str, int]:
        return self.counts[group]

    def as_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Summary:
        """The inverse of `as_json`."""
        return cls(values["counts"], [Share(**share) for share in values["shares"]], values["mask_iou"])


def with_notes(schema: pa.Schema, counts: dict[str, int]) -> pa.Schema:
    """A schema that carries counts which no row tells; `summarise` finds them in the file, in the group "files"."""
    return schema.with_metadata({_NOTES: json.dumps({name: count for name, count in counts.items() if count})})


def summarise(path: Path) -> Summary:
    """Sum up a catalog, column by column.

    Raises:
        PipelineError: there is no catalog, or it cannot be read.
    """
    try:
        table = pq.read_table(path, columns=list(_COLUMNS), read_dictionary=_REPEATED).unify_dictionaries()
        named = sum(len(table) - _column(path, name).null_count for name in ("image_path", "label_path"))
        both_halves = _people_in_both(table, _column(path, "image_path"))
        is_largest = pc.equal(_column(path, "largest_path"), _column(path, "image_path"))
        table = table.append_column("is_largest", is_largest)
        notes: dict[str, int] = json.loads((pq.read_schema(path).metadata or {}).get(_NOTES, b"{}"))
    except FileNotFoundError as error:
        raise PipelineError("no such file", file=path, remedy="materialise the asset catalog") from error
    except (pa.ArrowException, OSError) as error:
        remedy = "delete it and materialise the asset catalog again"
        raise PipelineError(f"is not a readable catalog ({error})", file=path, remedy=remedy) from error
    accepted = table.filter(table.column("accepted"))
    files = {"found": named, "images_accepted": len(accepted), "rows_rejected": len(table) - len(accepted)}
    counts: dict[str, dict[str, int]] = {
        "files": files | notes,
        "rejected": _count(table.column("reason").drop_null()),
        "people": _people(accepted, both_halves),
        "mask_origin": _count(accepted.column("mask_origin")),
        "mask_agreement": {
            "compared": len(accepted) - accepted.column("mask_iou").null_count,
            "disagree": pc.sum(accepted.column("masks_disagree")).as_py() or 0,
        },
        "face": _count(accepted.column("face_reason"), "usable")
        | {"several_faces": pc.sum(pc.greater(accepted.column("faces_found"), 1)).as_py() or 0},
        "identity": _count(accepted.column("identity_reason"), "reliable"),
        "stage2": _count(accepted.column("stage2_reason"), "eligible"),
        "split": _count(accepted.column("split")),
        "shards": {"shards": len(accepted.column("shard").unique())},
        "photo_size": _count(_sizes(accepted)),
        "patches_from": _patch_sources(accepted.column("is_largest")),
        "label_problems": dict(sorted(Counter(_problems(accepted)).items())),
    }
    counts |= {name: _count(accepted.column(name), _MISSING) for name in _ATTRIBUTES}
    return Summary(counts, list(_shares(accepted)), _quantiles(accepted.column("mask_iou")))


def _count(column: pa.ChunkedArray, null: str | None = None) -> dict[str, int]:
    """Value -> how often, largest first."""
    found = [
        (str(item["values"]), item["counts"])
        for item in pc.value_counts(column).to_pylist()
        if item["values"] is not None
    ]
    if null is not None and column.null_count:
        found.append((null, column.null_count))
    return dict(sorted(found, key=lambda item: (-item[1], item[0])))


def _column(path: Path, name: str) -> pa.ChunkedArray:
    return pq.read_table(path, columns=[name]).column(0)


def _people(accepted: pa.Table, both_halves: int) -> dict[str, int]:
    pairs = accepted.group_by(["split", "source"]).aggregate([])
    sides = _count(pairs.column("split"))
    return {
        "people": len(accepted.column("source").unique()),
        "in_training_and_validation": both_halves,
        **dict(sorted(sides.items())),
    }


def _people_in_both(table: pa.Table, image_paths: pa.ChunkedArray) -> int:
    """People with images in both of the release's own halves, of which the split takes no notice."""
    held = {}
    for half in ("training", "validation"):
        inside = pc.match_substring_regex(image_paths, f"(^|/){half}(/|\\.zip!/)", ignore_case=True)
        held[half] = set(table.column("source").filter(inside).drop_null().unique().to_pylist())
    return len(held["training"] & held["validation"])


def _sizes(accepted: pa.Table) -> pa.ChunkedArray:
    width, height = (accepted.column(name).cast(pa.string()) for name in ("width", "height"))
    return pc.binary_join_element_wise(width, height, "x")


def _patch_sources(is_largest: pa.ChunkedArray) -> dict[str, int]:
    own = pc.sum(is_largest).as_py() or 0
    return {"the_photo_itself": own, "a_larger_set": len(is_largest) - own}


def _problems(accepted: pa.Table) -> Iterator[str]:
    for text in accepted.column("label_problems").drop_null().to_pylist():
        yield from text.split("; ")


def _shares(accepted: pa.Table) -> Iterator[Share]:
    sides = {side: accepted.filter(pc.equal(accepted.column("split"), side)) for side in ("train", "validation")}
    for name in _ATTRIBUTES:
        counts = {side: _count(part.column(name), _MISSING) for side, part in sides.items()}
        for value in sorted({*counts["train"], *counts["validation"]}):
            train, validation = (counts[side].get(value, 0) / max(1, len(sides[side])) for side in sides)
            yield Share(name, value, round(train, 6), round(validation, 6))


def _quantiles(column: pa.ChunkedArray) -> dict[str, float]:
    if len(column) == column.null_count:
        return {}
    levels = [0.05, 0.5, 0.95]
    return {
        str(level): round(value, 4)
        for level, value in zip(levels, pc.quantile(column, levels).to_pylist(), strict=True)
    }
