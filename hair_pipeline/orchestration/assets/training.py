"""Group `training`: the two stages of the inpainting model.

Belongs here: the stages' inputs. Does not belong here: the training, which runs in a child of the step
(`training_step`).
"""

import dagster as dg

from hair_pipeline.orchestration.assets.processed import identity_embeddings, latents, style_vectors
from hair_pipeline.orchestration.assets.texture import style_classifier
from hair_pipeline.orchestration.compute_tags import gpus
from hair_pipeline.orchestration.resources import PipelineResource
from hair_pipeline.orchestration.training_step import TrainingConfig, train_network
from hair_pipeline.settings import load_settings

GROUP = "training"
SHARED_GPUS = gpus(load_settings().training_processes)
"""The stages may train on several cards of one machine."""


@dg.asset(
    group_name=GROUP,
    deps=[latents, style_vectors, style_classifier, "inpainting_base", "perceptual_trunk"],
    description="Stage 1, texture and style: regenerate hair-only images and patches from noise.",
    code_version="1",
    kinds={"torch", "diffusers"},
    **SHARED_GPUS,
)
def stage1_checkpoint(
    context: dg.AssetExecutionContext, config: TrainingConfig, pipeline: PipelineResource
) -> dg.MaterializeResult:
    return train_network("stage1", context, config, pipeline)


@dg.asset(
    group_name=GROUP,
    deps=[
        stage1_checkpoint,
        latents,
        style_vectors,
        identity_embeddings,
        style_classifier,
        "inpainting_base",
        "face_recogniser",
        "perceptual_trunk",
    ],
    description="Stage 2, conditioned inpainting: put the hair into the mask, face locked, identity by IP-Adapter.",
    code_version="1",
    kinds={"torch", "diffusers"},
    **SHARED_GPUS,
)
def stage2_checkpoint(
    context: dg.AssetExecutionContext, config: TrainingConfig, pipeline: PipelineResource
) -> dg.MaterializeResult:
    return train_network("stage2", context, config, pipeline)
