"""Which assets, and which shards of them, are missing or out of date: by the data versions that Dagster records.

The same rule as the UI's, asked in a few queries per asset. Dagster's own resolver asks several per shard, which takes
minutes for hundreds of shards, and does not look at the shards of an input at all where there are a hundred or more.

Belongs here: comparing what an asset was made from with what there is now. Does not belong here: what is done about it
(`rounds.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_TAG,
    INPUT_DATA_VERSION_TAG_PREFIX,
    NULL_EVENT_POINTER,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)

NEVER_SEEN = "INITIAL"
"""The version that Dagster writes down for an input that has none."""
_REMEMBERED: dict[tuple[str, int], Mapping[str, str]] = {}
"""(instance, storage id) -> tags of a shard's materialisation. Events never change, and pictures make them large."""


class Status(Enum):
    """What is to be said about an asset, or one shard of it."""

    MISSING = "missing"
    STALE = "stale"
    FRESH = "fresh"


@dataclass(frozen=True)
class ShardVersions:
    """Reads what is recorded of partitioned assets; each answer is one query for all shards."""

    instance: dg.DagsterInstance

    def of(self, key: dg.AssetKey, *, until: int | None = None) -> dict[str, str]:
        """Shard -> data version now, or as it was after the event with the storage id `until`."""
        for kind in (dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_OBSERVATION):
            tags = self.instance.event_log_storage.get_latest_tags_by_partition(
                key, kind, [DATA_VERSION_TAG], before_cursor=None if until is None else until + 1
            )
            if tags:
                break
        return {shard: values[DATA_VERSION_TAG] for shard, values in tags.items() if DATA_VERSION_TAG in values}

    def tags(self, key: dg.AssetKey) -> dict[str, Mapping[str, str]]:
        """Shard -> tags of its last materialisation."""
        storage = self.instance.event_log_storage
        ids = storage.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION)
        name = repr(self.instance.get_ref()) if self.instance.is_persistent else str(id(self.instance))
        unknown = [number for number in ids.values() if (name, number) not in _REMEMBERED]
        for start in range(0, len(unknown), 500):
            part = unknown[start : start + 500]
            wanted = dg.AssetRecordsFilter(asset_key=key, storage_ids=part)
            for record in self.instance.fetch_materializations(wanted, limit=len(part)).records:
                made = record.asset_materialization
                _REMEMBERED[name, record.storage_id] = dict(made.tags or {}) if made else {}
        return {shard: _REMEMBERED.get((name, number), {}) for shard, number in ids.items()}


class Staleness:
    """One look at an instance; answers are kept as long as the object.

    Args:
        instance: where materialisations are recorded.
        graph: all assets.
        shards: the registered ones.
    """

    def __init__(self, instance: dg.DagsterInstance, graph: AssetGraph, shards: Sequence[str]) -> None:
        self._instance = instance
        self._graph = graph
        self._shards = shards
        self._versions = ShardVersions(instance)
        self._of_shards = cache(self._versions.of)
        self._of_asset = cache(self._last_tags)

    def of_asset(self, key: dg.AssetKey) -> Status:
        """The status of an asset without shards."""
        tags = self._of_asset(key)
        if not tags:
            return Status.MISSING
        return Status.STALE if self._is_stale(key, tags, None) else Status.FRESH

    def of_shards(self, key: dg.AssetKey) -> dict[str, Status]:
        """The status of every shard of an asset."""
        made = self._versions.tags(key)
        return {
            shard: Status.MISSING
            if shard not in made
            else Status.STALE
            if self._is_stale(key, made[shard], shard)
            else Status.FRESH
            for shard in self._shards
        }

    def _is_stale(self, key: dg.AssetKey, tags: Mapping[str, str], shard: str | None) -> bool:
        node = self._graph.get(key)
        if node.code_version is not None and tags.get(CODE_VERSION_TAG) != node.code_version:
            return True
        prefix = INPUT_DATA_VERSION_TAG_PREFIX + "/"
        known = {name.removeprefix(prefix) for name in tags if name.startswith(prefix)}
        if known != {parent.to_user_string() for parent in node.parent_keys}:
            return True
        return any(self._is_updated(parent, tags, shard) for parent in node.parent_keys)

    def _is_updated(self, parent: dg.AssetKey, tags: Mapping[str, str], shard: str | None) -> bool:
        then = tags[get_input_data_version_tag(parent)]
        if not self._graph.get(parent).is_partitioned:
            return then != self._of_asset(parent).get(DATA_VERSION_TAG, NEVER_SEEN)
        now = self._of_shards(parent)
        if shard is not None:
            return then != now.get(shard, NEVER_SEEN)
        pointer = tags.get(get_input_event_pointer_tag(parent), NULL_EVENT_POINTER)
        before = {} if pointer == NULL_EVENT_POINTER else self._of_shards(parent, until=int(pointer))
        return any(before.get(each) != now.get(each) for each in self._shards)

    def _last_tags(self, key: dg.AssetKey) -> Mapping[str, str]:
        """Tags of the last materialisation, or observation where there is none; empty when there is neither."""
        made = self._instance.get_latest_materialization_event(key)
        if made is not None and made.asset_materialization is not None:
            return {DATA_VERSION_TAG: NEVER_SEEN, **(made.asset_materialization.tags or {})}
        seen = self._instance.fetch_observations(key, limit=1).records if self._graph.get(key).is_external else []
        observation = seen[0].event_log_entry.asset_observation if seen else None
        return dict(observation.tags) if observation is not None else {}
