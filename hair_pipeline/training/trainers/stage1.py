"""Stage 1, texture and style: regenerate hair-only images and patches from noise.

Belongs here: what is particular to Stage 1. Does not belong here: what both stages share (`trainers.stage`).
"""

from __future__ import annotations

from hair_pipeline.training.context import Context, Finished
from hair_pipeline.training.trainers.stage import freeze_identity_branch, run_stage


def run(context: Context) -> Finished:
    """Train Stage 1 from the base and new adapters."""
    return run_stage(context, "stage1", context.profile.stage1, ("hair_only", "patch"), freeze_identity_branch)
