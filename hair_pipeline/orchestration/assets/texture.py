"""Group `texture`: what reads hair.

Belongs here: the networks' inputs. Does not belong here: the training, which runs in a child of the step
(`training_step`).
"""

import dagster as dg

from hair_pipeline.orchestration.assets.inputs import catalog
from hair_pipeline.orchestration.compute_tags import GPU
from hair_pipeline.orchestration.resources import PipelineResource
from hair_pipeline.orchestration.training_step import TrainingConfig, train_network

GROUP = "texture"


@dg.asset(
    group_name=GROUP,
    deps=["hair_patches"],
    description="The hair patch encoder: InfoNCE with same-person and same-curl positives; then frozen.",
    code_version="1",
    kinds={"torch"},
    **GPU,
)
def patch_encoder(
    context: dg.AssetExecutionContext, config: TrainingConfig, pipeline: PipelineResource
) -> dg.MaterializeResult:
    return train_network("patch-encoder", context, config, pipeline)


@dg.asset(
    group_name=GROUP,
    deps=[catalog, "hair_only_images", "inpainting_base"],
    description="Two classifiers of curl and bangs, differently built and seeded: one for the style loss, the other "
    "only for evaluation.",
    code_version="1",
    kinds={"torch"},
    **GPU,
)
def style_classifier(
    context: dg.AssetExecutionContext, config: TrainingConfig, pipeline: PipelineResource
) -> dg.MaterializeResult:
    return train_network("style-classifier", context, config, pipeline)
