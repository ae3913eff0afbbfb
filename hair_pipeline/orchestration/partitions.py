"""Partitions: the dynamic set `shards`, registered by the catalog, and the data version of each shard's own rows.

Belongs here: partition definitions, backfill policies, and recording what concerns single partitions. Does not belong
here: how people are assigned to shards (`inputs.shards`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG, get_input_data_version_tag
from dagster._core.execution.plan.execute_step import (
    _build_data_version_tags,
    _get_code_version,
    _get_input_provenance_data,
)
from sqlalchemy.exc import IntegrityError

from hair_pipeline.errors import PipelineError
from hair_pipeline.orchestration.metadata import shard_metadata
from hair_pipeline.orchestration.staleness import NEVER_SEEN, ShardVersions

if TYPE_CHECKING:
    from hair_pipeline.processing.report import ShardReport

SHARDS = dg.DynamicPartitionsDefinition(name="shards")

MAX_SHARDS_PER_RUN = 50
SHARD_BACKFILL = dg.BackfillPolicy.multi_run(max_partitions_per_run=MAX_SHARDS_PER_RUN)
"""One run takes many shards: a run per shard spends more time on starting processes than on the images."""


LEFT_OUT_TAG = "hair_pipeline/left_out"
"""Run tag: shards inside the run's range that it makes nothing of, separated by commas."""


def register_shards(instance: dg.DagsterInstance, shards: Sequence[str]) -> list[str]:
    """Make the instance's partitions equal to the catalog's shards; returns the new ones."""
    name = str(SHARDS.name)
    new: list[str] = []
    while missing := sorted(set(shards) - set(instance.get_dynamic_partitions(name))):
        with suppress(IntegrityError):  # another process has added some of them in this moment
            instance.add_dynamic_partitions(name, missing)
            new = missing
    for gone in sorted(set(instance.get_dynamic_partitions(name)) - set(shards)):
        instance.delete_dynamic_partition(name, gone)
    return new


def named_shards(instance: dg.DagsterInstance, text: str) -> list[str]:
    """The shards that a text names: single ones and ranges `first...last`, separated by commas.

    Raises:
        PipelineError: it names none, or a range ends before it begins.
    """
    registered = list(instance.get_dynamic_partitions(str(SHARDS.name)))
    named: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dots, last = part.partition("...")
        if dots and first in registered and last in registered:
            between = registered[registered.index(first) : registered.index(last) + 1]
            if not between:
                raise PipelineError(f"the range {part!r} ends before it begins", remedy=f"say {last}...{first}")
            named += between
        else:
            named += [first, last] if dots else [part]
    if not named:
        raise PipelineError(f"{text!r} names no shard", remedy="name some, or leave --shards out for all")
    return named


def observe_shards(context: dg.AssetExecutionContext, asset: dg.AssetKey, versions: Mapping[str, str]) -> list[str]:
    """Observe the shards whose version is another than last time; returns them."""
    known = context.instance.event_log_storage.get_latest_tags_by_partition(
        asset, dg.DagsterEventType.ASSET_OBSERVATION, [DATA_VERSION_TAG]
    )
    changed = [shard for shard, version in versions.items() if known.get(shard, {}).get(DATA_VERSION_TAG) != version]
    for shard in changed:
        tags = {DATA_VERSION_TAG: versions[shard]}
        context.log_event(dg.AssetObservation(asset, partition=shard, tags=tags))
    return changed


Inputs = Mapping[dg.AssetKey, Mapping[str, str]]
"""Partitioned input -> shard -> data version."""


def partitioned_inputs(context: dg.AssetExecutionContext) -> Inputs:
    """The data versions of a step's partitioned inputs, shard by shard; to be read before the work begins."""
    graph = context.job_def.asset_layer.asset_graph
    parents = {parent for key in context.selected_asset_keys for parent in graph.get(key).parent_keys}
    versions = ShardVersions(context.instance)
    return {parent: versions.of(parent) for parent in parents if graph.get(parent).is_partitioned}


def left_out(context: dg.AssetExecutionContext) -> list[str]:
    """The shards of this run's range that it is to make nothing of."""
    named = context.run.tags.get(LEFT_OUT_TAG, "").split(",")
    return [shard for shard in context.partition_keys if shard in named]


def record_left_out(context: dg.AssetExecutionContext, shards: Iterable[str]) -> None:
    """Say of these shards that nothing was made of them.

    Dagster takes a step that ends well to have made its whole range. An event without versions is the last that counts
    and is out of date whatever comes, so that the shard is made as soon as its inputs are there.
    """
    metadata = {"left_out": "its inputs are missing: this run made nothing of it"}
    for shard in shards:
        for asset in context.selected_asset_keys:
            context.log_event(dg.AssetMaterialization(asset, partition=shard, metadata=metadata))


def record_shards(context: dg.AssetExecutionContext, reports: Iterable[ShardReport], inputs: Inputs) -> None:
    """Record each shard as materialised, with its own data version and those of the inputs it was made from.

    A step's result has one data version for all its partitions; with it, a shard would seem changed whenever it is
    made in other company. So each shard gets an event of its own, which is the last and therefore the one that counts.
    """
    step = context.get_step_execution_context()
    for report in reports:
        asset, shard = dg.AssetKey(report.asset), report.shard
        tags = _build_data_version_tags(
            dg.DataVersion(report.data_version),
            _get_code_version(asset, step),
            _get_input_provenance_data(asset, step),
            data_version_is_user_provided=True,
        )
        for key, versions in inputs.items():
            if (tag := get_input_data_version_tag(key)) in tags:
                tags[tag] = versions.get(shard, NEVER_SEEN)
        metadata = shard_metadata(report)
        context.log_event(dg.AssetMaterialization(asset, partition=shard, metadata=metadata, tags=tags))
