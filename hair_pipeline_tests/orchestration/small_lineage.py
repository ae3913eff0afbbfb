"""A lineage of the same shape as the real one, with assets that only note that they ran. Used by test_launch."""

import dagster as dg

from hair_pipeline.errors import PipelineError
from hair_pipeline.orchestration.partitions import (
    SHARD_BACKFILL,
    SHARDS,
    observe_shards,
    partitioned_inputs,
    record_shards,
    register_shards,
)
from hair_pipeline.orchestration.resources import explained
from hair_pipeline.processing.report import ShardReport


class World:
    """What the assets see and what they did; reset by each test."""

    source_version = "1"
    weights_version = "1"
    shards: tuple[str, ...] = ("s0", "s1")
    rows: dict = {}
    """Shard -> another version of its rows than the first."""
    broken_shards: frozenset[str] = frozenset()
    failing: frozenset[str] = frozenset()
    report_fails: PipelineError | None = None
    catalog_is_bad = False
    check_breaks = False
    ran: list = []

    @classmethod
    def reset(cls) -> None:
        cls.source_version, cls.shards, cls.failing, cls.catalog_is_bad = "1", ("s0", "s1"), frozenset(), False
        cls.report_fails, cls.weights_version = None, "1"
        cls.rows, cls.broken_shards, cls.check_breaks = {}, frozenset(), False
        cls.ran.clear()


@dg.observable_source_asset
def source():
    if "source" in World.failing:
        raise dg.Failure("as told", allow_retries=False)
    return dg.DataVersion(World.source_version)


@dg.observable_source_asset
def weights():
    return dg.DataVersion(World.weights_version)


@dg.asset(deps=[source], code_version="1")
def catalog(context: dg.AssetExecutionContext):
    register_shards(context.instance, World.shards)
    observe_shards(context, dg.AssetKey("catalog_shards"), {s: World.rows.get(s, "1") for s in World.shards})
    World.ran.append("catalog")
    return dg.MaterializeResult(data_version=dg.DataVersion("catalog of " + World.source_version))


def sharded(name, deps):
    @dg.asset(name=name, deps=deps, partitions_def=SHARDS, backfill_policy=SHARD_BACKFILL, code_version="1")
    def asset(context: dg.AssetExecutionContext):
        inputs = partitioned_inputs(context)
        World.ran.append((name, *context.partition_keys))
        if name in World.failing:
            raise dg.Failure("as told", allow_retries=False)
        good = [shard for shard in context.partition_keys if shard not in World.broken_shards]
        if len(good) == len(context.partition_keys):
            yield dg.MaterializeResult(data_version=dg.DataVersion(f"{name} of {good}"))
        record_shards(context, [shard_report(name, shard) for shard in good], inputs)
        if len(good) < len(context.partition_keys):
            raise dg.Failure("some shards failed", allow_retries=False)

    return asset


def shard_report(asset, shard):
    version = f"{asset} {World.rows.get(shard, '1')}"
    return ShardReport(asset, shard, "", written=1, skipped={}, failed={}, data_version=version)


def whole(name, deps):
    @dg.asset(name=name, deps=deps, code_version="1")
    def asset():
        World.ran.append(name)
        if name in World.failing:
            raise dg.Failure("as told", allow_retries=False)
        return dg.MaterializeResult(data_version=dg.DataVersion(name))

    return asset


@dg.asset(deps=["stage"], code_version="1")
def report():
    World.ran.append("report")
    with explained():
        if World.report_fails is not None:
            raise World.report_fails
    return dg.MaterializeResult(data_version=dg.DataVersion("report"))


@dg.asset_check(asset=catalog, blocking=True)
def sound():
    if World.check_breaks:
        raise ValueError("as told")
    return dg.AssetCheckResult(passed=not World.catalog_is_bad)


defs = dg.Definitions(
    assets=[
        source,
        weights,
        catalog,
        dg.AssetSpec("catalog_shards", deps=[catalog], partitions_def=SHARDS),
        sharded("patches", ["catalog_shards"]),
        sharded("parts", ["patches", "weights"]),
        whole("base", ["catalog"]),
        whole("encoder", ["patches", "weights"]),
        sharded("vectors", ["patches", "encoder", "base"]),
        whole("stage", ["vectors"]),
        report,
    ],
    asset_checks=[sound],
    executor=dg.in_process_executor,
)
