"""Stage 1, texture and style: regenerate hair-only images and patches from noise.

Belongs here: what is particular to Stage 1. Does not belong here: what both stages share (`trainers.stage`).
"""

from __future__ import annotations

from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.members import Members
from hair_pipeline.models.attribute_tokens import ATTRIBUTES
from hair_pipeline.models.inpainter import HairInpainter
from hair_pipeline.models.weights import base_reference
from hair_pipeline.training.context import Context, Finished
from hair_pipeline.training.data import read_style_vectors
from hair_pipeline.training.style_start import start_from_prompts
from hair_pipeline.training.trainers.stage import freeze_identity_branch, run_stage


def run(context: Context) -> Finished:
    """Train Stage 1 from the base and new adapters; the style projection learns the base's own prompts first."""
    settings = context.settings

    def learn_prompts(model: HairInpainter) -> dict[str, float]:
        styles = read_style_vectors(settings.processed / "style_vectors", Members.read(settings.catalog_path))
        base = base_reference(settings, context.profile)
        columns = ["accepted", "image_id", "split", "has_face", *ATTRIBUTES]
        catalog = read_catalog(settings.catalog_path, columns=columns)
        return start_from_prompts(model.style_projection, base, styles, catalog)

    stage = context.profile.stage1
    return run_stage(context, "stage1", stage, ("hair_only", "patch"), freeze_identity_branch, learn_prompts)
