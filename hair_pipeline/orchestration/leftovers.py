"""Tidying up behind the catalog: outputs of shards that it has no more.

Belongs here: when they may be removed, and telling Dagster. Does not belong here: which files they are
(`processing.gone`).
"""

from __future__ import annotations

from collections.abc import Collection

import dagster as dg

from hair_pipeline.errors import PipelineError
from hair_pipeline.settings import Settings

_AT_WORK = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def remove_gone_shards(
    context: dg.AssetExecutionContext, settings: Settings, shards: Collection[str], unread: int
) -> dict[str, int]:
    """Remove the outputs of all shards but these, unless something speaks for waiting until the next time.

    Args:
        shards: the catalog's.
        unread: how many input files the catalog could not read: their people may come back.

    Returns:
        Metadata: how many shards were removed, and how many are still there.
    """
    from hair_pipeline.processing.gone import gone_outputs, remove_outputs

    outputs = gone_outputs(settings, shards)
    gone = {shard for _, shard in outputs}
    kept: set[str] = set()
    why = _why_wait(context, settings, len(gone), len(shards), unread) if gone else None
    if why is not None:
        context.log.warning(f"outputs of {len(gone)} shards that are no longer in the catalog are kept: {why}")
        return {"gone_shards_removed": 0, "gone_shards_kept": len(gone)}
    for (asset, shard), paths in outputs.items():
        # without a version: should the shard come back, it is out of date, and not as it was last made
        metadata = {"removed": "the shard is no longer in the catalog"}
        context.log_event(dg.AssetMaterialization(asset, partition=shard, metadata=metadata))
        try:
            remove_outputs(paths)
        except PipelineError as error:
            context.log.warning(f"{asset} of {shard} is not removed: {error.message}")
            kept.add(shard)
    if removed := sorted(gone - kept):
        context.log.info(f"removed the outputs of {len(removed)} shards no longer in the catalog: {', '.join(removed)}")
    return {"gone_shards_removed": len(removed), "gone_shards_kept": len(kept)}


def _why_wait(context: dg.AssetExecutionContext, settings: Settings, gone: int, shards: int, unread: int) -> str | None:
    """What speaks against removing now: inputs that may come back, or somebody who may read or write the files."""
    from hair_pipeline.training.runs import trainers_at_work

    if unread:
        return f"{unread} input files could not be read"
    if gone > shards:
        return (
            f"the catalog has only {shards}. Look at the input folders; if they are right, delete the outputs by hand"
        )
    runs = context.instance.get_runs(dg.RunsFilter(statuses=_AT_WORK))
    if others := [run.run_id[:8] for run in runs if run.run_id != context.run_id]:
        return f"run {', '.join(others)} is under way; the next catalog removes them"
    if trainers := trainers_at_work(settings):
        return f"{', '.join(trainers)} is being trained; the next catalog removes them"
    return None
