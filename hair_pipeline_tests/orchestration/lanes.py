"""A lineage that only says what it saw: which cards it could see, and when. Used by the tests of the lanes.

HAIR_PIPELINE_TEST_JOURNAL names the file that the steps write to, HAIR_PIPELINE_TEST_EXECUTOR the executor.
"""

import json
import os
import time
from pathlib import Path

import dagster as dg

from hair_pipeline.orchestration.compute_tags import CPU, GPU
from hair_pipeline.orchestration.executors import build_executor


def note(name: str, seconds: float) -> None:
    """Append one line to the journal: what ran, where, and when."""
    start = time.monotonic()
    time.sleep(seconds)
    line = {
        "name": name,
        "run": os.environ.get("HAIR_PIPELINE_TEST_RUN"),
        "pid": os.getpid(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "profile": os.environ.get("HAIR_PIPELINE_PROFILE"),
        "start": start,
        "end": time.monotonic(),
    }
    with Path(os.environ["HAIR_PIPELINE_TEST_JOURNAL"]).open("a") as journal:
        journal.write(json.dumps(line) + "\n")


@dg.observable_source_asset(op_tags=dict(CPU["op_tags"]))
def source() -> dg.DataVersion:
    return dg.DataVersion("1")


def lane(name: str, mark, seconds: float = 0.0) -> dg.AssetsDefinition:
    @dg.asset(name=name, **mark)
    def asset() -> None:
        note(name, seconds)

    return asset


@dg.asset_check(asset="on_gpu_0")
def unmarked() -> dg.AssetCheckResult:
    note("unmarked", 0)
    return dg.AssetCheckResult(passed=True)


defs = dg.Definitions(
    assets=[
        source,
        lane("on_gpu_0", GPU, 0.7),
        lane("on_gpu_1", GPU, 0.7),
        lane("on_cpu", CPU),
    ],
    asset_checks=[unmarked],
    executor=build_executor(os.environ.get("HAIR_PIPELINE_TEST_EXECUTOR", "local")),
)


def launch_here(home: str) -> None:
    """Materialise everything in the instance at `home`, as `hair-pipeline run` would."""
    from hair_pipeline.orchestration.instance import open_instance
    from hair_pipeline.orchestration.launch import launch
    from hair_pipeline.settings import load_settings

    os.environ["DAGSTER_HOME"] = home
    with open_instance(load_settings()) as instance:
        outcome = launch(
            instance,
            selection="* or key:source",  # a launch without one has the steps preload torch, which none needs
            force=True,
            module="hair_pipeline_tests.orchestration.lanes",
        )
    assert not outcome.failures, outcome.failures


if __name__ == "__main__":
    import sys

    launch_here(sys.argv[1])
