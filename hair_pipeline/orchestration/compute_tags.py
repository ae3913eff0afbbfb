"""What each asset computes on. A leaf module: every asset takes its mark from here and nowhere else.

Belongs here: the accelerator marks, one per kind of machine, in the words of every engine.
Does not belong here: executors (`executors.py`) or anything that imports.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

GPU_POOL = "gpu"
CPU_POOL = "cpu"


class ComputeMark(TypedDict):
    """Keyword arguments for `dg.asset`: `op_tags`, since an asset's `tags` do not reach the executor, and `pool`."""

    op_tags: Mapping[str, Any]
    pool: str


GPU: ComputeMark = {
    "op_tags": {
        "hair_pipeline/accelerator": "gpu",
        "dagster-ray/config": {"num_gpus": 1},
        "dagster-k8s/config": {"container_config": {"resources": {"limits": {"nvidia.com/gpu": "1"}}}},
    },
    "pool": GPU_POOL,
}
"""Steps that train or run a network. The pool's limit of 1 keeps two runs from sharing one card."""

CPU: ComputeMark = {
    "op_tags": {
        "hair_pipeline/accelerator": "cpu",
        "dagster-ray/config": {"num_gpus": 0},
    },
    "pool": CPU_POOL,
}
"""Steps that read, cut and write files."""
