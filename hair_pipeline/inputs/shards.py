"""Shards: groups of whole people, append-only, and the file that remembers them together with the split.

Belongs here: which person stands in which shard. Does not belong here: partitions (`orchestration`) and what is
done per shard (`processing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import read_json, write_json
from hair_pipeline.inputs.split import Split


def shard_name(number: int) -> str:
    """`shard_0000`, `shard_0001`, ..."""
    return f"shard_{number:04d}"


def assign_shards(
    people: Mapping[str, int], shard_size: int, existing: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Put every person into a shard.

    A person already in a shard stays there. New people, in sorted order, fill new shards only, so that old shards
    keep their people; a shard is closed before it would exceed `shard_size` images.

    Args:
        people: source -> number of images.
        shard_size: images per shard (one person with more images makes a larger shard).
        existing: earlier assignments, also of people who are gone.

    Returns:
        source -> shard, for `people`.
    """
    known = dict(existing or {})
    number = 1 + max((int(name.rpartition("_")[2]) for name in known.values()), default=-1)
    filled = 0
    for source in sorted(set(people) - set(known)):
        if filled and filled + people[source] > shard_size:
            number, filled = number + 1, 0
        known[source] = shard_name(number)
        filled += people[source]
    return {source: known[source] for source in people}


@dataclass
class Assignments:
    """What was decided about people in earlier runs, kept in `assignments.json` beside the catalog.

    `splits` counts only for the `fraction` and `seed` it was made with.
    """

    shards: dict[str, str] = field(default_factory=dict)
    splits: dict[str, Split] = field(default_factory=dict)
    fraction: float = 0.0
    seed: int = 0

    @classmethod
    def read(cls, path: Path) -> Assignments:
        """Read the file; empty when there is none yet.

        Raises:
            PipelineError: it is damaged. To go on without it would move people to other shards.
        """
        if not path.exists():
            return cls()
        try:
            values: Any = read_json(path)
            return cls(dict(values["shards"]), dict(values["splits"]), values["fraction"], values["seed"])
        except (PipelineError, KeyError, TypeError, ValueError) as error:
            what = f"does not say which shard each person is in ({type(error).__name__})"
            remedy = "put a copy of it back; or delete it: people then stay where the last catalog has them"
            raise PipelineError(what, file=path, remedy=remedy) from error

    @classmethod
    def of_catalog(cls, path: Path, fraction: float, seed: int) -> Assignments:
        """What a catalog says, taken to be made with this `fraction` and `seed`; without those who are gone.

        Raises:
            PipelineError: the catalog cannot be read.
        """
        try:
            table = pq.read_table(path, columns=["source", "shard", "split"], filters=[("accepted", "=", True)])
        except (pa.ArrowException, OSError) as error:
            raise PipelineError(
                f"is not a readable catalog ({error})", file=path, remedy="delete it: shards and split start anew"
            ) from error
        people = table.group_by(["source", "shard", "split"]).aggregate([]).to_pydict()
        shards, splits = (dict(zip(people["source"], people[name], strict=True)) for name in ("shard", "split"))
        return cls(shards, splits, fraction, seed)

    def write(self, path: Path) -> None:
        """Write the file."""
        values = {"fraction": self.fraction, "seed": self.seed}
        write_json(path, values | {"shards": _sorted(self.shards), "splits": _sorted(self.splits)})


def _sorted(values: Mapping[str, str]) -> dict[str, str]:
    return dict(sorted(values.items()))
