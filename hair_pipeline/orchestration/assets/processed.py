"""Group `processed`: each image cut into parts, a shard at a time.

A bad image never fails its shard: it is counted with its reason in the metadata.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import dagster as dg

from hair_pipeline.files import hash_bytes
from hair_pipeline.orchestration.assets.inputs import catalog
from hair_pipeline.orchestration.compute_tags import CPU, GPU
from hair_pipeline.orchestration.metadata import shard_metadata
from hair_pipeline.orchestration.partitions import SHARD_BACKFILL, SHARDS
from hair_pipeline.orchestration.resources import PipelineResource, explained

if TYPE_CHECKING:
    from hair_pipeline.processing.report import ShardReport
    from hair_pipeline.profile import Profile
    from hair_pipeline.settings import Settings

GROUP = "processed"


def _process(
    context: dg.AssetExecutionContext,
    pipeline: PipelineResource,
    function: "Callable[[str, Settings, Profile], ShardReport]",
) -> dg.MaterializeResult:
    """Run `function` on every shard of this run; one broken shard does not stop the others."""
    settings, profile = pipeline.settings, pipeline.profile
    reports, broken = [], {}
    for shard in context.partition_keys:
        try:
            with explained():
                reports.append(function(shard, settings, profile))
        except dg.Failure as failure:
            broken[shard] = failure.description or "failed"
            context.log.error(f"{shard}: {failure.description}")
    if broken:
        # The step fails, but the shards that went well are recorded as materialised all the same.
        for report in reports:
            context.log_event(
                dg.AssetMaterialization(
                    context.asset_key,
                    partition=report.shard,
                    metadata=shard_metadata(report),
                    tags={"dagster/data_version": report.data_version},
                )
            )
        raise dg.Failure(
            description=f"{len(broken)} of {len(context.partition_keys)} shards failed: "
            + "; ".join(f"{shard}: {why}" for shard, why in broken.items()),
            allow_retries=False,
        )
    for report in reports:
        context.add_asset_metadata(shard_metadata(report), partition_key=report.shard)
    return dg.MaterializeResult(data_version=dg.DataVersion(hash_bytes(*(report.data_version for report in reports))))


@dg.asset(
    group_name=GROUP,
    deps=[catalog],
    partitions_def=SHARDS,
    backfill_policy=SHARD_BACKFILL,
    description="training_face's identity embeddings, gathered and checked, never recomputed.",
    code_version="1",
    kinds={"parquet"},
    **CPU,
)
def identity_embeddings(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    from hair_pipeline.processing.shards import gather_identity_embeddings

    return _process(context, pipeline, gather_identity_embeddings)


@dg.asset(
    group_name=GROUP,
    deps=[catalog],
    partitions_def=SHARDS,
    backfill_policy=SHARD_BACKFILL,
    description="The photo with its hair removed: grown mask, filled by Telea, Navier-Stokes, blur or gray.",
    code_version="1",
    kinds={"opencv"},
    **CPU,
)
def bald_images(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    from hair_pipeline.processing.shards import make_bald_images

    return _process(context, pipeline, make_bald_images)


@dg.asset(
    group_name=GROUP,
    deps=[catalog],
    partitions_def=SHARDS,
    backfill_policy=SHARD_BACKFILL,
    description="Only the hair, as RGBA; RGB is zero where alpha is zero.",
    code_version="1",
    kinds={"opencv"},
    **CPU,
)
def hair_only_images(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    from hair_pipeline.processing.shards import make_hair_only_images

    return _process(context, pipeline, make_hair_only_images)


@dg.asset(
    group_name=GROUP,
    deps=[catalog],
    partitions_def=SHARDS,
    backfill_policy=SHARD_BACKFILL,
    description="Small cuts that lie wholly inside the hair: the texture bank.",
    code_version="1",
    kinds={"opencv", "parquet"},
    **CPU,
)
def hair_patches(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    from hair_pipeline.processing.shards import cut_hair_patches

    return _process(context, pipeline, cut_hair_patches)


@dg.asset(
    group_name=GROUP,
    deps=[hair_patches, hair_only_images, "patch_encoder", "style_classifier"],
    partitions_def=SHARDS,
    backfill_policy=SHARD_BACKFILL,
    description="One vector per image that represents its hairstyle, from the frozen patch encoder by default.",
    code_version="1",
    kinds={"torch", "parquet"},
    **GPU,
)
def style_vectors(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    from hair_pipeline.training.style_vectors import embed_shard

    return _process(context, pipeline, embed_shard)


@dg.asset(
    group_name=GROUP,
    deps=[bald_images, hair_only_images, hair_patches, "inpainting_base"],
    partitions_def=SHARDS,
    backfill_policy=SHARD_BACKFILL,
    description="VAE latents of photos, bald images, hair-only images and patches, computed once for training.",
    code_version="1",
    kinds={"torch", "diffusers"},
    **GPU,
)
def latents(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    from hair_pipeline.training.latents import encode_shard

    return _process(context, pipeline, encode_shard)
