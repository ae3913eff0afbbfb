"""The split by person: a hash decides, so that new people never move old ones between train and validation.

Belongs here: who is held out. Does not belong here: images (all of a person's images follow the person).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

Split = Literal["train", "validation"]


def position(source: str, seed: int) -> float:
    """A person's fixed place in [0, 1): validation where it is below the fraction."""
    digest = hashlib.sha256(f"{seed}:{source}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def assign_splits(
    people: Mapping[str, int], fraction: float, seed: int, existing: Mapping[str, Split] | None = None
) -> dict[str, Split]:
    """Assign every person to train or validation.

    A person already assigned stays; any other is held out where `position` is below `fraction`. On a handful of
    people the hash may leave a side without anyone to learn from or to measure on. So, where at least two people
    share the best usefulness, each side gets one of them: first among the new people, among all only when a side
    would be empty.

    Args:
        people: source -> usefulness (2: a reliable identity, 1: can take part in Stage 2, 0: neither).
        fraction: share held out.
        seed: another seed holds out other people.
        existing: earlier assignments.

    Returns:
        source -> side, for `people` (at least one each when there are two people or more).
    """
    fixed = {source: side for source, side in (existing or {}).items() if source in people}
    splits: dict[str, Split] = {}
    for source in sorted(people):
        by_hash: Split = "validation" if position(source, seed) < fraction else "train"
        splits[source] = fixed.get(source, by_hash)
    if len(people) < 2:
        return dict.fromkeys(splits, "train")
    level = max(value for value in (0, 1, 2) if sum(rank >= value for rank in people.values()) >= 2)
    sides: tuple[tuple[Split, Split], ...] = (("validation", "train"), ("train", "validation"))
    for wanted, other in sides:
        for needed in (level, 0):
            if any(splits[source] == wanted and people[source] >= needed for source in splits):
                continue
            donors = [source for source in splits if splits[source] == other and people[source] >= needed]
            new = [source for source in donors if source not in fixed]
            empty = wanted not in splits.values()
            candidates = new or (donors if empty else [])
            if candidates:
                sign = 1 if wanted == "validation" else -1
                splits[min(candidates, key=lambda source: (sign * position(source, seed), source))] = wanted
    return splits
