"""Which person a `source` is: one name for all spellings that differ in case, and for names the profile declares one.

Belongs here: names of people. Does not belong here: reading the name off a label or a path (`examine`, `k_hairstyle`),
and deciding a person's shard and side of the split (`shards`, `split`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

import pyarrow as pa


def names_of(sources: Iterable[str], assigned: Container[str], same_person: Mapping[str, str]) -> dict[str, str]:
    """The name that each person goes by, found by `key_of` of any of their sources.

    Of several spellings the one counts that earlier runs gave a shard, so that nobody moves when another spelling
    comes; among these, or where there is none, the first in sorted order.

    Args:
        sources: of all images.
        assigned: the names of people who have a shard.
        same_person: of the profile: source -> the source it belongs to, in any case and in any order: where A is B and
            B is C, all three are C.
    """
    spellings: dict[str, str] = {}
    for source in sorted(sources, key=lambda source: (source not in assigned, source)):
        spellings.setdefault(key_of(source), source)
    names = dict(spellings)
    for alias, source in same_person.items():
        joined = names.setdefault(key_of(alias), alias)
        person = names.setdefault(key_of(source), source)  # who may have been joined to somebody else before
        names = {key: person if name == joined else name for key, name in names.items()}
    return names


def key_of(source: str) -> str:
    """A source without regard to case; in capitals, as the release writes them."""
    return source if source.isascii() and source.isupper() else source.casefold().upper()


def renamed(sources: pa.ChunkedArray, names: Mapping[str, str]) -> pa.Array:
    """A column of sources with each person's one name; sources of nobody known, and null, stay."""
    coded = sources.combine_chunks().dictionary_encode()
    kept = [names.get(key_of(source), source) for source in coded.dictionary.to_pylist()]
    return pa.array(kept, pa.string()).take(coded.indices)
