"""Groups `texture` and `training`: everything that learns. Training runs as a child of the step (`trainer.py`)."""

import dagster as dg
from pydantic import Field

from hair_pipeline.orchestration.assets.inputs import catalog
from hair_pipeline.orchestration.assets.processed import (
    identity_embeddings,
    latents,
    style_vectors,
)
from hair_pipeline.orchestration.compute_tags import GPU, gpus
from hair_pipeline.orchestration.metadata import loss_curves, numbers, thumbnail
from hair_pipeline.orchestration.resources import PipelineResource, explained
from hair_pipeline.orchestration.trainer import train_in_child
from hair_pipeline.settings import load_settings
from hair_pipeline.training.runs import current

SHARED_GPUS = gpus(load_settings().training_processes)
"""The stages may train on several cards of one machine."""


class TrainingConfig(dg.Config):
    """How to treat an unfinished or finished training. The launchpad shows these texts."""

    start_over: bool = Field(
        default=False,
        description="Throw the run of this configuration and these data away, finished or not, and train from step 0.",
    )
    keep_going: bool = Field(
        default=False,
        description="Go on from the unfinished run's checkpoint although configuration or data changed since; the "
        "result's notes say so. Otherwise such a change begins a new run beside the old one.",
    )

    def options(self) -> list[str]:
        """The options of `hair-pipeline train`."""
        if self.start_over and self.keep_going:
            raise dg.Failure(
                "start_over and keep_going exclude each other: choose one in the run's config", allow_retries=False
            )
        if self.start_over:
            return ["--no-resume"]
        return ["--resume", "--force"] if self.keep_going else []


def _train(
    name: str, context: dg.AssetExecutionContext, config: TrainingConfig, pipeline: PipelineResource
) -> dg.MaterializeResult:
    """Run `hair-pipeline train NAME` and report what it left in runs/NAME/current.json."""
    options = config.options()
    if context.retry_number > 0:  # what was thrown away once is begun anew only once
        options = [option for option in options if option != "--no-resume"]
    with explained():
        train_in_child(name, context, pipeline.settings, options)
        result = current(name, pipeline.settings)
    notes = "\n".join(f"- **{subject}**: {note}" for subject, note in result.notes.items())
    return dg.MaterializeResult(
        data_version=dg.DataVersion(result.version),
        metadata={
            **(thumbnail(result.pictures[0]) if result.pictures else {}),
            **loss_curves(result.run_dir),
            "version": result.version,
            "run_folder": dg.MetadataValue.path(str(result.run_dir)),
            **numbers(result.metrics),
            **({"notes": dg.MetadataValue.md(notes)} if notes else {}),
        },
    )


@dg.asset(
    group_name="texture",
    deps=["hair_patches"],
    description="The hair patch encoder: InfoNCE with same-person and same-curl positives; then frozen.",
    code_version="1",
    kinds={"torch"},
    **GPU,
)
def patch_encoder(
    context: dg.AssetExecutionContext, config: TrainingConfig, pipeline: PipelineResource
) -> dg.MaterializeResult:
    return _train("patch-encoder", context, config, pipeline)


@dg.asset(
    group_name="texture",
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
    return _train("style-classifier", context, config, pipeline)


@dg.asset(
    group_name="training",
    deps=[latents, style_vectors, style_classifier, "inpainting_base", "perceptual_trunk"],
    description="Stage 1, texture and style: regenerate hair-only images and patches from noise.",
    code_version="1",
    kinds={"torch", "diffusers"},
    **SHARED_GPUS,
)
def stage1_checkpoint(
    context: dg.AssetExecutionContext, config: TrainingConfig, pipeline: PipelineResource
) -> dg.MaterializeResult:
    return _train("stage1", context, config, pipeline)


@dg.asset(
    group_name="training",
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
    return _train("stage2", context, config, pipeline)


TRAINED_ASSETS = [patch_encoder, style_classifier, stage1_checkpoint, stage2_checkpoint]
