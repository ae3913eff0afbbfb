"""Group `processed`: each image cut into parts, a shard at a time.

A bad image never fails its shard: it is counted with its reason in the metadata.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
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
    function: "Callable[[str, Settings, Profile], Mapping[str, ShardReport]]",
) -> Iterator[dg.MaterializeResult]:
    """Run `function` (shard -> report per asset) on every shard of this run; a broken one stops no other."""
    from hair_pipeline.inputs.workers import kept_pool

    settings, profile = pipeline.settings, pipeline.profile
    reports: list[ShardReport] = []
    broken: dict[str, str] = {}
    with kept_pool():
        for shard in context.partition_keys:
            try:
                with explained():
                    reports += function(shard, settings, profile).values()
            except dg.Failure as failure:
                broken[shard] = failure.description or "failed"
                context.log.error(f"{shard}: {failure.description}")
    if broken:
        # The step fails, but the shards that went well are recorded as materialised all the same.
        for report in reports:
            context.log_event(
                dg.AssetMaterialization(
                    report.asset,
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
    versions: dict[str, list[str]] = {}
    for report in reports:
        context.add_asset_metadata(shard_metadata(report), asset_key=report.asset, partition_key=report.shard)
        versions.setdefault(report.asset, []).append(report.data_version)
    for asset, parts in versions.items():
        yield dg.MaterializeResult(asset_key=asset, data_version=dg.DataVersion(hash_bytes(*parts)))


def _process_one(
    context: dg.AssetExecutionContext,
    pipeline: PipelineResource,
    function: "Callable[[str, Settings, Profile], ShardReport]",
) -> dg.MaterializeResult:
    """`_process` for a step that makes one asset."""

    def as_mapping(shard: str, settings: "Settings", profile: "Profile") -> "Mapping[str, ShardReport]":
        report = function(shard, settings, profile)
        return {report.asset: report}

    (result,) = _process(context, pipeline, as_mapping)
    return result


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

    return _process_one(context, pipeline, gather_identity_embeddings)


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            "bald_images",
            description="The photo with its hair removed: grown mask, filled by Telea, Navier-Stokes, blur or gray.",
            deps=[catalog],
            group_name=GROUP,
            code_version="2",
            kinds={"opencv"},
        ),
        dg.AssetSpec(
            "hair_only_images",
            description="Only the hair, as RGBA; RGB is zero where alpha is zero.",
            deps=[catalog],
            group_name=GROUP,
            code_version="2",
            kinds={"opencv"},
        ),
        dg.AssetSpec(
            "hair_patches",
            description="Small cuts that lie wholly inside the hair, from the largest photo: the texture bank.",
            deps=[catalog],
            group_name=GROUP,
            code_version="2",
            kinds={"opencv", "parquet"},
        ),
    ],
    can_subset=True,
    partitions_def=SHARDS,
    backfill_policy=SHARD_BACKFILL,
    **CPU,
)
def image_parts(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> Iterator[dg.MaterializeResult]:
    """One step for the three, so that a photo, its label and its sheet are decoded once for all of them."""
    from hair_pipeline.processing.shards import IMAGE_PARTS, make_image_parts

    selected = {key.to_user_string() for key in context.selected_asset_keys}
    assets = tuple(asset for asset in IMAGE_PARTS if asset in selected)
    yield from _process(context, pipeline, partial(make_image_parts, assets=assets))


@dg.asset(
    group_name=GROUP,
    deps=["hair_patches", "hair_only_images", "patch_encoder", "style_classifier"],
    partitions_def=SHARDS,
    backfill_policy=SHARD_BACKFILL,
    description="One vector per image that represents its hairstyle, from the frozen patch encoder by default.",
    code_version="1",
    kinds={"torch", "parquet"},
    **GPU,
)
def style_vectors(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    from hair_pipeline.training.style_vectors import embed_shard

    return _process_one(context, pipeline, embed_shard)


@dg.asset(
    group_name=GROUP,
    deps=["bald_images", "hair_only_images", "hair_patches", "inpainting_base"],
    partitions_def=SHARDS,
    backfill_policy=SHARD_BACKFILL,
    description="VAE latents of photos, bald images, hair-only images and patches, computed once for training.",
    code_version="1",
    kinds={"torch", "diffusers"},
    **GPU,
)
def latents(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    from hair_pipeline.training.latents import encode_shard

    return _process_one(context, pipeline, encode_shard)
