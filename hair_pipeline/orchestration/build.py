"""Putting the definitions together, with a seam for tests.

Belongs here: `build_defs`. Does not belong here: any definition itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg
from dagster._core.definitions.external_asset import create_external_asset_from_source_asset

from hair_pipeline.orchestration.alerts import run_failed
from hair_pipeline.orchestration.assets.base import build_outside
from hair_pipeline.orchestration.assets.evaluation import ab_verdict, eval_report
from hair_pipeline.orchestration.assets.inputs import (
    catalog,
    catalog_shards,
    customer_photos,
    k_hairstyle_images,
    training_face_outputs,
)
from hair_pipeline.orchestration.assets.processed import (
    identity_embeddings,
    image_parts,
    latents,
    style_vectors,
)
from hair_pipeline.orchestration.assets.release import exported_weights, production_registry
from hair_pipeline.orchestration.assets.texture import patch_encoder, style_classifier
from hair_pipeline.orchestration.assets.training import stage1_checkpoint, stage2_checkpoint
from hair_pipeline.orchestration.checks import CHECKS
from hair_pipeline.orchestration.code_versions import with_profile
from hair_pipeline.orchestration.executors import build_executor
from hair_pipeline.orchestration.jobs import JOBS
from hair_pipeline.orchestration.owners import with_owner
from hair_pipeline.orchestration.resources import PipelineResource
from hair_pipeline.orchestration.schedules import build_schedules
from hair_pipeline.orchestration.sensors import build_sensors
from hair_pipeline.settings import Settings, load_settings

INPUTS = [k_hairstyle_images, training_face_outputs, customer_photos]
ASSETS = [
    catalog,
    catalog_shards,
    identity_embeddings,
    image_parts,
    latents,
    style_vectors,
    patch_encoder,
    style_classifier,
    stage1_checkpoint,
    stage2_checkpoint,
    eval_report,
    ab_verdict,
    exported_weights,
    production_registry,
]


def build_defs(
    *, settings: Settings | None = None, resource_overrides: Mapping[str, object] | None = None
) -> dg.Definitions:
    """All definitions of the code location.

    Args:
        settings: instead of those of the environment.
        resource_overrides: resources by name, instead of the default ones.
    """
    settings = settings or load_settings()
    profile = settings.profile_values
    # as Dagster itself turns sources into assets: only in this form can they have owners and kinds
    sources = map(create_external_asset_from_source_asset, [*INPUTS, *build_outside(profile)])
    parts: list = [*sources, *ASSETS]
    assets = dg.map_asset_specs(lambda spec: with_owner(with_profile(spec, profile)), parts)
    return dg.Definitions(
        assets=assets,
        asset_checks=CHECKS,
        jobs=JOBS,
        sensors=[run_failed, *build_sensors(profile)],
        schedules=build_schedules(profile),
        executor=build_executor(settings.executor),
        resources={
            "pipeline": PipelineResource(),
            **(resource_overrides or {}),
        },
    )
