"""What of the lineage is out of date, and which part of it can run now: by Dagster's own data versions.

Belongs here: staleness, and cutting it into runs. Does not belong here: executing runs (`launch.py`) or asking the
daemon for them (`automation.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.storage.partition_status_cache import AssetPartitionStatus
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from hair_pipeline.orchestration.partitions import MAX_SHARDS_PER_RUN, SHARDS
from hair_pipeline.orchestration.soundness import unsound
from hair_pipeline.orchestration.staleness import Staleness, Status


@dataclass(frozen=True)
class Round:
    """One run: assets that are all partitioned, over a range of shards, or all not."""

    assets: tuple[dg.AssetKey, ...]
    shards: tuple[str, ...] = ()

    @property
    def tags(self) -> dict[str, str]:
        """The run tags that name its shards."""
        return range_tags(self.shards)


def range_tags(shards: Sequence[str]) -> dict[str, str]:
    """The run tags for an unbroken range of shards."""
    if not shards:
        return {}
    return {ASSET_PARTITION_RANGE_START_TAG: shards[0], ASSET_PARTITION_RANGE_END_TAG: shards[-1]}


@dataclass(frozen=True)
class Stale:
    """An asset that is out of date: missing altogether or not, and for a partitioned one, in which shards."""

    missing: bool
    shards: tuple[str, ...] = ()


Piece = tuple[dg.AssetKey, str | None]
"""An asset in one shard; with None an asset that has no shards, or all shards of one that has."""


class Lineage:
    """The asset graph, the part of it that is selected, and what of that is out of date in an instance.

    Args:
        instance: where materialisations are recorded.
        graph: all assets.
        selected: the assets looked at; all if None.
        only_shards: the shards looked at; all if None, else assets without shards are not looked at.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        graph: AssetGraph,
        selected: Collection[dg.AssetKey] | None = None,
        only_shards: Collection[str] | None = None,
    ) -> None:
        self.instance = instance
        self.graph = graph
        self.only_shards = only_shards
        self.selected = frozenset(graph.get_all_asset_keys() if selected is None else selected)
        self.order = [
            key
            for key in graph.toposorted_asset_keys
            if key in self.selected and (only_shards is None or graph.get(key).is_partitioned)
        ]

    def made_by(self, step: str) -> list[str]:
        """The selected assets that a step makes: most steps make one of their own name, `image_parts` several."""
        names = {key.to_user_string(): self.graph.assets_def_for_key(key).node_def.name for key in self.materialisable}
        return [asset for asset, name in names.items() if name == step] or [step]

    @property
    def materialisable(self) -> list[dg.AssetKey]:
        """What is made here, of what is looked at."""
        return [key for key in self.order if self.graph.get(key).is_materializable]

    @property
    def sources(self) -> list[dg.AssetKey]:
        """The observable inputs."""
        return [key for key in self.graph.toposorted_asset_keys if self.graph.get(key).is_observable]

    def out_of_date(self) -> dict[dg.AssetKey, Stale]:
        """Selected assets that are missing, stale or unsound, with the shards concerned."""
        staleness = Staleness(self.instance, self.graph, self.registered)
        faults = self.unsound()
        stale: dict[dg.AssetKey, Stale] = {}
        for key in self.materialisable:
            node = self.graph.get(key)
            if node.is_partitioned:
                found = staleness.of_shards(key)
                statuses = {shard: found[shard] for shard in self.shards}
                shards = tuple(shard for shard, status in statuses.items() if status != Status.FRESH)
                if shards or not statuses:
                    stale[key] = Stale(all(status == Status.MISSING for status in statuses.values()), shards)
            elif (status := staleness.of_asset(key)) != Status.FRESH or key in faults:
                stale[key] = Stale(status == Status.MISSING)
        return stale

    def unsound(self) -> dict[dg.AssetKey, str]:
        """Assets, selected or not, that nothing may be built on, with the reason."""
        return unsound(self.instance, self.graph)

    @property
    def registered(self) -> tuple[str, ...]:
        """All shards, in order of registration."""
        return tuple(self.instance.get_dynamic_partitions(str(SHARDS.name)))

    @property
    def shards(self) -> tuple[str, ...]:
        """The shards looked at, in order of registration."""
        return tuple(shard for shard in self.registered if self.only_shards is None or shard in self.only_shards)

    def failed_shards(self) -> tuple[str, ...]:
        """Shards whose last run failed, for at least one selected asset."""
        failed = {
            shard
            for key in self.materialisable
            if self.graph.get(key).is_partitioned
            for shard in self._shards_that_are(AssetPartitionStatus.FAILED, key, self.shards)
        }
        return tuple(shard for shard in self.shards if shard in failed)

    def made(self, round_: Round) -> set[Piece]:
        """The shards of a round that its last run made."""
        done = AssetPartitionStatus.MATERIALIZED
        keys = {key for key, shard in self.pieces(round_) if shard is not None}
        return {(key, shard) for key in keys for shard in self._shards_that_are(done, key, round_.shards)}

    def _shards_that_are(self, wanted: AssetPartitionStatus, key: dg.AssetKey, shards: Sequence[str]) -> set[str]:
        statuses = self.instance.get_status_by_partition(key, shards, SHARDS) or {}
        return {shard for shard, status in statuses.items() if status == wanted}

    def without(self, stale: Mapping[dg.AssetKey, Stale], pieces: Collection[Piece]) -> dict[dg.AssetKey, Stale]:
        """What is left of what is out of date without these pieces."""
        left: dict[dg.AssetKey, Stale] = {}
        for key, found in stale.items():
            shards = tuple(shard for shard in found.shards if (key, shard) not in pieces)
            if (key, None) not in pieces and (shards or not found.shards):
                left[key] = Stale(found.missing, shards)
        return left

    def pieces(self, round_: Round) -> set[Piece]:
        """What a run of this round makes or observes."""
        return {(key, shard) for key in round_.assets for shard in round_.shards or (None,)}

    def held_back(self, broken: Collection[Piece]) -> set[Piece]:
        """What is broken and all that cannot be made without it: a shard needs the same shard of its inputs alone."""
        held: dict[dg.AssetKey, set[str | None]] = {}
        for key, shard in broken:
            held.setdefault(key, set()).add(shard)
        for key in self.graph.toposorted_asset_keys:
            node = self.graph.get(key)
            for parent in node.parent_keys & held.keys():
                both = node.is_partitioned and self.graph.get(parent).is_partitioned
                held.setdefault(key, set()).update(held[parent] if both else {None})
        return {(key, shard) for key, shards in held.items() for shard in shards}

    def next_round(self, stale: Mapping[dg.AssetKey, Stale], done: frozenset[dg.AssetKey]) -> Round | None:
        """The largest set of out-of-date assets of one kind (partitioned or not) that can run now.

        An asset waits while anything upstream of it is still to run, since that may leave its inputs as they are. Only
        one that is missing anyway may run in the same round as its upstream.

        Args:
            stale: result of `out_of_date`, without what was tried already or is held back.
            done: assets of which nothing is left; they are left alone, and nothing waits for them.
        """
        chosen: list[dg.AssetKey] = []
        unsettled: set[dg.AssetKey] = set()
        for key in self.order:
            node = self.graph.get(key)
            upstream = unsettled.intersection(node.parent_keys)
            if key in done or (key not in stale and not upstream):
                continue
            unsettled.add(key)
            if key not in stale or (upstream and not (stale[key].missing and upstream <= set(chosen))):
                continue
            same_kind = not chosen or node.is_partitioned == self.graph.get(chosen[0]).is_partitioned
            if same_kind and (stale[key].shards or not node.is_partitioned):
                chosen.append(key)
        if not chosen:
            return None
        concerned = {shard for key in chosen for shard in stale[key].shards}
        return Round(tuple(chosen), tuple(shard for shard in self.shards if shard in concerned))


def split(round_: Round, registered: tuple[str, ...]) -> Iterator[Round]:
    """Runs of at most MAX_SHARDS_PER_RUN shards, each an unbroken range, since a run takes its shards as a range."""
    if not round_.shards:
        yield round_
    start = 0
    positions = [registered.index(shard) for shard in round_.shards]
    for end in range(1, len(positions) + 1):
        full = end - start == MAX_SHARDS_PER_RUN
        if end == len(positions) or full or positions[end] != positions[end - 1] + 1:
            yield Round(round_.assets, round_.shards[start:end])
            start = end
