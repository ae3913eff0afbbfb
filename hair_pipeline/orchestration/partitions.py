"""Partitions: the dynamic set `shards`, registered by the catalog.

Belongs here: partition definitions and backfill policies. Does not belong here: how people are assigned to
shards (`inputs.shards`).
"""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

SHARDS = dg.DynamicPartitionsDefinition(name="shards")

MAX_SHARDS_PER_RUN = 50
SHARD_BACKFILL = dg.BackfillPolicy.multi_run(max_partitions_per_run=MAX_SHARDS_PER_RUN)
"""One run takes many shards: a run per shard spends more time on starting processes than on the images."""


def register_shards(instance: dg.DagsterInstance, shards: Sequence[str]) -> list[str]:
    """Make the instance's partitions equal to the catalog's shards; returns the new ones."""
    name = SHARDS.name
    assert name is not None
    known = set(instance.get_dynamic_partitions(name))
    new = [shard for shard in sorted(shards) if shard not in known]
    if new:
        instance.add_dynamic_partitions(name, new)
    for gone in sorted(known - set(shards)):
        instance.delete_dynamic_partition(name, gone)
    return new
