"""Shards: groups of whole people, append-only, and the file that remembers them together with the split.

Belongs here: which person stands in which shard. Does not belong here: partitions (`orchestration`) and what is
done per shard (`processing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
        """Read the file; empty when there is none yet."""
        if not path.exists():
            return cls()
        values: Any = read_json(path)
        return cls(values["shards"], values["splits"], values["fraction"], values["seed"])

    def write(self, path: Path) -> None:
        """Write the file."""
        values = {"fraction": self.fraction, "seed": self.seed}
        write_json(path, values | {"shards": _sorted(self.shards), "splits": _sorted(self.splits)})


def _sorted(values: Mapping[str, str]) -> dict[str, str]:
    return dict(sorted(values.items()))
