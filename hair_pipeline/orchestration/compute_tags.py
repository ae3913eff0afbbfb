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


def gpus(count: int) -> ComputeMark:
    """Steps that train or run a network on `count` GPUs of one machine.

    The pool's limit of 1 keeps two runs from sharing the cards of one machine.
    """
    return {
        "op_tags": {
            "hair_pipeline/accelerator": "gpu",
            # Its own environment, in place of the executor's, which hides all cards: Ray shows the ones it assigns.
            "dagster-ray/config": {"num_gpus": count, "runtime_env": {"env_vars": {}}},
            "dagster-k8s/config": {
                "container_config": {
                    "resources": {"limits": {"nvidia.com/gpu": str(count)}},
                    "volume_mounts": [{"name": "shared-memory", "mount_path": "/dev/shm"}],
                },
                "pod_spec_config": {
                    "termination_grace_period_seconds": 300,  # a training that is ended finishes its step and saves
                    # GPU nodes are usually kept free of other pods by this taint.
                    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                    # Data loading processes hand over batches in /dev/shm, which is 64 MiB without this.
                    "volumes": [{"name": "shared-memory", "empty_dir": {"medium": "Memory", "size_limit": "8Gi"}}],
                },
            },
        },
        "pool": GPU_POOL,
    }


GPU: ComputeMark = gpus(1)
"""Steps that run a network, or train one that a single card is enough for."""

CPU: ComputeMark = {
    "op_tags": {
        "hair_pipeline/accelerator": "cpu",
        "dagster-ray/config": {"num_gpus": 0},
    },
    "pool": CPU_POOL,
}
"""Steps that read, cut and write files."""
