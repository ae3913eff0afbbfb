"""Executors: where steps run, chosen by HAIR_PIPELINE_EXECUTOR. Engines other than `local` are imported only if chosen.

Belongs here: one function per engine. Does not belong here: what an asset needs (`compute_tags.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import Literal

import dagster as dg
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.executor import multiprocess
from dagster._core.executor.init import InitExecutorContext

from hair_pipeline.cores import cpu_count
from hair_pipeline.errors import PipelineError
from hair_pipeline.orchestration.instance import limit_gpu_steps
from hair_pipeline.orchestration.leases import Leased

FORWARDED_PREFIXES = ("HAIR_PIPELINE_", "DAGSTER_HOME", "DAGSTER_PG_", "DAGSTER_POSTGRES_", "OMP_", "HF_")
"""Environment variables that steps on other machines need too."""
SECRETS = frozenset({"DAGSTER_PG_PASSWORD", "DAGSTER_POSTGRES_URL", "HAIR_PIPELINE_ALERT_WEBHOOK", "HF_TOKEN"})
"""Not sent with a step: Ray shows a job's variables to all who may look at the cluster. Ray is started with them."""
_IDLE_SECONDS = 0.2


class _PatientExecution(ActiveExecution):
    """Dagster's multiprocess executor asks for steps without a pause, also while all of them wait for a pool or for
    their next try: hours on a core of its own, without this one.
    """

    def get_steps_to_execute(self, limit: int | None = None) -> Sequence[ExecutionStep]:
        steps = super().get_steps_to_execute(limit)
        if not steps and not self.has_in_flight_steps and not self.is_complete:
            time.sleep(_IDLE_SECONDS)
        return steps


multiprocess.ActiveExecution = _PatientExecution  # type: ignore[misc]


def _leased(definition: dg.ExecutorDefinition) -> dg.ExecutorDefinition:
    """The executor, holding the lease of each run: Dagster itself watches no process of its default launcher.

    It also sees to it that GPU steps are limited, whoever launches the run and in whichever instance.
    """

    def create(context: InitExecutorContext) -> Leased:
        assert definition.executor_creation_fn is not None
        limit_gpu_steps(context.instance)
        return Leased(definition.executor_creation_fn(context))

    return dg.ExecutorDefinition(
        name=definition.name,
        config_schema=definition.config_schema,  # type: ignore[arg-type]
        requirements=definition.get_requirements,
        executor_creation_fn=create,
        description=definition.description,
    )


def local_executor() -> dg.ExecutorDefinition:
    """Every step in a process of its own on this machine; pools keep GPU steps one at a time, across runs.

    The fork server loads the definitions once, so that a step starts in a fraction of a second.
    """
    return _leased(dg.multiprocess_executor).configured(
        {
            "max_concurrent": cpu_count(),
            "start_method": {"forkserver": {"preload_modules": ["hair_pipeline.orchestration.preload"]}},
        },
        name="local",
    )


def ray_executor() -> dg.ExecutorDefinition:
    """Every step as a Ray job of the cluster at RAY_ADDRESS; GPU assets ask for a GPU (extra `ray`).

    Jobs have the environment of the cluster, not of whoever submits them, so the variables that say what the pipeline
    works on go with every step, without `SECRETS`.
    """
    try:
        from dagster_ray import ray_executor as executor
    except ImportError as error:
        raise _missing_extra("ray") from error
    lane = {
        "env_vars": forwarded(os.environ),
        "num_cpus": 1,  # a job without any resource would be pinned to the head node
        "runtime_env": {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}},  # num_gpus=0 alone hides no card
    }
    return _leased(executor).configured({"ray": lane}, name="ray")


def forwarded(environment: Iterable[str]) -> list[str]:
    """The names of the variables that go with a step to another machine."""
    return sorted(name for name in environment if name.startswith(FORWARDED_PREFIXES) and name not in SECRETS)


def k8s_executor() -> dg.ExecutorDefinition:
    """Every step as a Kubernetes job; GPU assets have an `nvidia.com/gpu` limit (extra `k8s`)."""
    try:
        from dagster_k8s import k8s_job_executor as executor
    except ImportError as error:
        raise _missing_extra("k8s") from error
    return executor


def _missing_extra(extra: str) -> PipelineError:
    return PipelineError(
        f"HAIR_PIPELINE_EXECUTOR={extra} needs the extra `{extra}`, which is not installed",
        remedy=f"run `uv sync --extra {extra}` or unset HAIR_PIPELINE_EXECUTOR",
    )


def build_executor(name: Literal["local", "ray", "k8s"]) -> dg.ExecutorDefinition:
    """The executor of that name.

    Raises:
        PipelineError: the engine's extra is not installed.
    """
    return {"local": local_executor, "ray": ray_executor, "k8s": k8s_executor}[name]()
