"""Executors: where steps run, chosen by HAIR_PIPELINE_EXECUTOR. Engines other than `local` are imported only if chosen.

Belongs here: one function per engine. Does not belong here: what an asset needs (`compute_tags.py`).
"""

from __future__ import annotations

import os
from typing import Literal

import dagster as dg

from hair_pipeline.errors import PipelineError


def local_executor() -> dg.ExecutorDefinition:
    """Every step in a process of its own on this machine; pools keep GPU steps one at a time, across runs.

    The fork server loads the definitions once, so that a step starts in a fraction of a second.
    """
    return dg.multiprocess_executor.configured(
        {
            "max_concurrent": os.cpu_count() or 2,
            "start_method": {"forkserver": {"preload_modules": ["hair_pipeline.orchestration.preload"]}},
        },
        name="local",
    )


def ray_executor() -> dg.ExecutorDefinition:
    """Every step as a Ray job; GPU assets ask for one GPU (extra `ray`)."""
    try:
        from dagster_ray import ray_executor as executor
    except ImportError as error:
        raise _missing_extra("ray") from error
    return executor


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
