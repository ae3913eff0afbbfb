"""A lineage of one training, run by `trainer.train_in_child`, for test_trainer."""

import os

import dagster as dg

from hair_pipeline.orchestration import resources, trainer
from hair_pipeline.orchestration.compute_tags import GPU
from hair_pipeline.orchestration.executors import local_executor
from hair_pipeline.orchestration.resources import explained
from hair_pipeline.settings import load_settings

COMMAND = ("-m", "hair_pipeline_tests.orchestration.line_trainer")
if "HAIR_PIPELINE_TEST_FOLDER" in os.environ:  # in the processes that test_trainer starts, not in pytest's own
    trainer.COMMAND = COMMAND
    resources.RETRIES = dg.RetryPolicy(max_retries=2, delay=0.2)


@dg.observable_source_asset
def source() -> dg.DataVersion:
    return dg.DataVersion("1")


@dg.asset(deps=[source], **GPU)
def stage2(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    with explained():
        trainer.train_in_child("stage2", context, load_settings())
    return dg.MaterializeResult()


defs = dg.Definitions(assets=[source, stage2], executor=local_executor())


if __name__ == "__main__":
    import sys

    from hair_pipeline.orchestration.instance import open_instance
    from hair_pipeline.orchestration.launch import launch

    with open_instance(load_settings()) as instance:
        outcome = launch(
            instance,
            selection="* or key:source",  # a launch without one has the steps preload torch, which none needs
            module="hair_pipeline_tests.orchestration.stoppable",
        )
    sys.exit(str(outcome.failures) if outcome.failures else 0)
