"""Groups `texture` and `training`: everything that learns.

Training always runs as a subprocess, so that GPU memory is freed, the code server stays light, and the same command
works by hand: `hair-pipeline train NAME`.
"""

import os
import sys
import tempfile
from pathlib import Path

import dagster as dg

from hair_pipeline.orchestration.assets.inputs import catalog
from hair_pipeline.orchestration.assets.processed import (
    identity_embeddings,
    latents,
    style_vectors,
)
from hair_pipeline.orchestration.compute_tags import GPU
from hair_pipeline.orchestration.metadata import numbers, thumbnail
from hair_pipeline.orchestration.resources import PipelineResource
from hair_pipeline.training.runs import current

ERROR_FILE_VARIABLE = "HAIR_PIPELINE_ERROR_FILE"


def _train(
    name: str, context: dg.AssetExecutionContext, pipeline: PipelineResource, pipes: dg.PipesSubprocessClient
) -> dg.MaterializeResult:
    """Run `hair-pipeline train NAME` and report what it left in runs/NAME/current.json."""
    with tempfile.TemporaryDirectory() as folder:
        error_file = Path(folder) / "error.txt"
        try:
            _run_subprocess(name, context, pipes, error_file)
        except dg.DagsterError as error:
            why = error_file.read_text() if error_file.exists() else f"{error} (see the step's stderr)"
            raise dg.Failure(description=why, allow_retries=False) from error
    result = current(name, pipeline.settings)
    notes = "\n".join(f"- **{subject}**: {note}" for subject, note in result.notes.items())
    return dg.MaterializeResult(
        data_version=dg.DataVersion(result.version),
        metadata={
            "version": result.version,
            "run_folder": dg.MetadataValue.path(str(result.run_dir)),
            **numbers(result.metrics),
            **({"notes": dg.MetadataValue.md(notes)} if notes else {}),
            **(thumbnail(result.pictures[0]) if result.pictures else {}),
        },
    )


def _run_subprocess(
    name: str, context: dg.AssetExecutionContext, pipes: dg.PipesSubprocessClient, error_file: Path
) -> None:
    pipes.run(
        context=context,
        command=[sys.executable, "-m", "hair_pipeline.cli", "train", name],
        env={**os.environ, ERROR_FILE_VARIABLE: str(error_file)},
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
    context: dg.AssetExecutionContext, pipeline: PipelineResource, pipes: dg.PipesSubprocessClient
) -> dg.MaterializeResult:
    return _train("patch-encoder", context, pipeline, pipes)


@dg.asset(
    group_name="texture",
    deps=[catalog, "hair_only_images"],
    description="Two classifiers of curl and bangs, differently built and seeded: one for the style loss, the other "
    "only for evaluation.",
    code_version="1",
    kinds={"torch"},
    **GPU,
)
def style_classifier(
    context: dg.AssetExecutionContext, pipeline: PipelineResource, pipes: dg.PipesSubprocessClient
) -> dg.MaterializeResult:
    return _train("style-classifier", context, pipeline, pipes)


@dg.asset(
    group_name="training",
    deps=[latents, style_vectors, style_classifier, "perceptual_trunk"],
    description="Stage 1, texture and style: regenerate hair-only images and patches from noise.",
    code_version="1",
    kinds={"torch", "diffusers"},
    **GPU,
)
def stage1_checkpoint(
    context: dg.AssetExecutionContext, pipeline: PipelineResource, pipes: dg.PipesSubprocessClient
) -> dg.MaterializeResult:
    return _train("stage1", context, pipeline, pipes)


@dg.asset(
    group_name="training",
    deps=[
        stage1_checkpoint,
        latents,
        style_vectors,
        identity_embeddings,
        style_classifier,
        "face_recogniser",
        "perceptual_trunk",
    ],
    description="Stage 2, conditioned inpainting: put the hair into the mask, face locked, identity by IP-Adapter.",
    code_version="1",
    kinds={"torch", "diffusers"},
    **GPU,
)
def stage2_checkpoint(
    context: dg.AssetExecutionContext, pipeline: PipelineResource, pipes: dg.PipesSubprocessClient
) -> dg.MaterializeResult:
    return _train("stage2", context, pipeline, pipes)


TRAINED_ASSETS = [patch_encoder, style_classifier, stage1_checkpoint, stage2_checkpoint]
