"""The split by person: a hash decides, so that new people never move old ones between train and validation.

Belongs here: who is held out. Does not belong here: images (all of a person's images follow the person).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Literal

from hair_pipeline.inputs.people import key_of

Split = Literal["train", "validation"]


def position(source: str, seed: int) -> float:
    """A person's fixed place in [0, 1), whatever the case of the name: validation where it is below the fraction."""
    digest = hashlib.sha256(f"{seed}:{key_of(source)}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def assign_splits(
    people: Mapping[str, int], fraction: float, seed: int, existing: Mapping[str, Split] | None = None
) -> dict[str, Split]:
    """Assign every person to train or validation.

    A person already assigned stays; any other is held out where `position` is below `fraction`. On a handful of
    people the hash may leave a side without anyone to learn from or to measure on. So one of the most useful people
    is always trained on, and one of the most useful that two people share is always held out: taken from the new
    people, from all only when a side would be empty.

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
    best = max(people.values())
    shared = max(level for level in (0, 1, 2) if sum(rank >= level for rank in people.values()) >= 2)
    _move_one(splits, "validation", "train", best, people, fixed, lambda source: -position(source, seed))
    _move_one(splits, "train", "validation", shared, people, fixed, lambda source: position(source, seed))
    return splits


def _move_one(
    splits: dict[str, Split],
    giver: Split,
    taker: Split,
    level: int,
    people: Mapping[str, int],
    fixed: Mapping[str, Split],
    order: Callable[[str], float],
) -> None:
    """Give `taker` someone of at least `level` if it has nobody, unless that moves a fixed person needlessly.

    The giver keeps the last person who is more useful than `level`.
    """
    useful = [source for source in splits if people[source] >= level]
    if any(splits[source] == taker for source in useful):
        return
    donors = [source for source in useful if splits[source] == giver]
    empty = taker not in splits.values()
    candidates = [source for source in donors if source not in fixed] or (donors if empty else [])
    if candidates:
        splits[min(candidates, key=lambda source: (people[source] > level, order(source), source))] = taker
