"""A lineage of the same shape as the real one, with assets that only note that they ran. Used by test_launch."""

import dagster as dg

from hair_pipeline.orchestration.partitions import SHARD_BACKFILL, SHARDS, register_shards


class World:
    """What the assets see and what they did; reset by each test."""

    source_version = "1"
    shards: tuple[str, ...] = ("s0", "s1")
    failing: frozenset[str] = frozenset()
    catalog_is_bad = False
    ran: list = []

    @classmethod
    def reset(cls) -> None:
        cls.source_version, cls.shards, cls.failing, cls.catalog_is_bad = "1", ("s0", "s1"), frozenset(), False
        cls.ran.clear()


@dg.observable_source_asset
def source():
    return dg.DataVersion(World.source_version)


@dg.asset(deps=[source], code_version="1")
def catalog(context: dg.AssetExecutionContext):
    register_shards(context.instance, World.shards)
    World.ran.append("catalog")
    return dg.MaterializeResult(data_version=dg.DataVersion("catalog of " + World.source_version))


def sharded(name, deps):
    @dg.asset(name=name, deps=deps, partitions_def=SHARDS, backfill_policy=SHARD_BACKFILL, code_version="1")
    def asset(context: dg.AssetExecutionContext):
        World.ran.append((name, *context.partition_keys))
        if name in World.failing:
            raise dg.Failure("as told", allow_retries=False)
        return dg.MaterializeResult(data_version=dg.DataVersion(name))

    return asset


def whole(name, deps):
    @dg.asset(name=name, deps=deps, code_version="1")
    def asset():
        World.ran.append(name)
        if name in World.failing:
            raise dg.Failure("as told", allow_retries=False)
        return dg.MaterializeResult(data_version=dg.DataVersion(name))

    return asset


@dg.asset_check(asset=catalog, blocking=True)
def sound():
    return dg.AssetCheckResult(passed=not World.catalog_is_bad)


defs = dg.Definitions(
    assets=[
        source,
        catalog,
        sharded("patches", ["catalog"]),
        whole("base", ["catalog"]),
        whole("encoder", ["patches"]),
        sharded("vectors", ["patches", "encoder", "base"]),
        whole("stage", ["vectors"]),
        whole("report", ["stage"]),
    ],
    asset_checks=[sound],
    executor=dg.in_process_executor,
)
