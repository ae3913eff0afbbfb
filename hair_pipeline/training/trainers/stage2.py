"""Stage 2, conditioned inpainting: put the hair into the mask on the head, identity locked, face and light matched.

Belongs here: what is particular to Stage 2. Does not belong here: what both stages share (`trainers.stage`).
"""

from __future__ import annotations

from hair_pipeline.models.inpainter import HairInpainter
from hair_pipeline.training.context import Context, Finished
from hair_pipeline.training.runs import current
from hair_pipeline.training.trainers.stage import run_stage


def run(context: Context) -> Finished:
    """Train Stage 2 from Stage 1's final adapters."""
    before = current("stage1", context.settings)

    def prepare(model: HairInpainter) -> None:
        model.load_adapters(before.final_dir)

    return run_stage(context, "stage2", context.profile.stage2, ("photo",), prepare)
