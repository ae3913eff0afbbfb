"""Group `processed`: each image cut into parts, a shard at a time.

A bad image never fails its shard: it is counted with its reason in the metadata.

Belongs here: the shards' steps and what they show. Does not belong here: the shard functions (`processing.shards`).
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import dagster as dg

from hair_pipeline.files import hash_bytes
from hair_pipeline.orchestration.assets.inputs import catalog_shards
from hair_pipeline.orchestration.compute_tags import CPU, GPU
from hair_pipeline.orchestration.partitions import (
    SHARD_BACKFILL,
    SHARDS,
    left_out,
    partitioned_inputs,
    record_left_out,
    record_shards,
)
from hair_pipeline.orchestration.resources import PipelineResource, explained

if TYPE_CHECKING:
    from hair_pipeline.processing.report import ShardReport
    from hair_pipeline.profile import Profile
    from hair_pipeline.settings import Settings

GROUP = "processed"
Results = Iterator[dg.MaterializeResult]


def _process(
    context: dg.AssetExecutionContext,
    pipeline: PipelineResource,
    function: "Callable[[str, Settings, Profile], Mapping[str, ShardReport]]",
) -> Results:
    """Run `function` (shard -> report per asset) on every shard of this run; a broken one stops no other.

    The step is tried again when nothing but faults that pass by themselves is left.
    """
    from hair_pipeline.inputs.workers import kept_pool

    settings, profile = pipeline.settings, pipeline.profile
    inputs = partitioned_inputs(context)
    reports: list[ShardReport] = []
    broken: dict[str, Exception] = {}
    without = left_out(context)
    with kept_pool():
        for shard in context.partition_keys:
            if shard in without:
                continue
            try:
                with explained():
                    reports += function(shard, settings, profile).values()
            except Exception as error:
                broken[shard] = error
                context.log.error(f"{shard}: {_said(error)}", exc_info=error.__cause__ or error)
    if not broken:
        versions: dict[str, list[str]] = {}
        for report in reports:
            versions.setdefault(report.asset, []).append(report.data_version)
        for asset, parts in versions.items():
            yield dg.MaterializeResult(asset_key=asset, data_version=dg.DataVersion(hash_bytes(*parts)))
        record_left_out(context, without)
    record_shards(context, reports, inputs)  # also when the step fails: the shards that went well are done
    if broken:
        raise _failure(broken, len(context.partition_keys))


def _failure(broken: Mapping[str, Exception], shards: int) -> Exception:
    """What a step raises when some of its shards are broken."""
    lasting = [error for error in broken.values() if not isinstance(error, dg.RetryRequested)]
    if not lasting:
        return next(iter(broken.values()))
    said = {shard: _said(error) for shard, error in broken.items()}
    failure = dg.Failure(
        description=f"{len(broken)} of {shards} shards failed: "
        + "; ".join(f"{shard}: {why}" for shard, why in said.items()),
        metadata={"broken_shards": dg.MetadataValue.json(said)},
        allow_retries=False,
    )
    failure.__cause__ = lasting[0].__cause__ or lasting[0]
    return failure


def _said(error: Exception) -> str:
    if isinstance(error, dg.Failure):
        return error.description or "failed"
    cause = error.__cause__ if isinstance(error, dg.RetryRequested) else error
    return f"{type(cause).__name__}: {cause}"


def _process_one(
    context: dg.AssetExecutionContext,
    pipeline: PipelineResource,
    function: "Callable[[str, Settings, Profile], ShardReport]",
) -> Results:
    """`_process` for a step that makes one asset."""

    def as_mapping(shard: str, settings: "Settings", profile: "Profile") -> "Mapping[str, ShardReport]":
        report = function(shard, settings, profile)
        return {report.asset: report}

    yield from _process(context, pipeline, as_mapping)


@dg.asset(
    group_name=GROUP,
    deps=[catalog_shards],
    partitions_def=SHARDS,
    backfill_policy=SHARD_BACKFILL,
    description="training_face's identity embeddings, gathered and checked, never recomputed.",
    code_version="1",
    kinds={"parquet"},
    **CPU,
)
def identity_embeddings(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> Results:
    from hair_pipeline.processing.shards import gather_identity_embeddings

    yield from _process_one(context, pipeline, gather_identity_embeddings)


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            "bald_images",
            description="The photo with its hair removed: grown mask, filled by Telea, Navier-Stokes, blur or gray.",
            deps=[catalog_shards],
            group_name=GROUP,
            code_version="3",
            kinds={"opencv"},
        ),
        dg.AssetSpec(
            "hair_only_images",
            description="Only the hair, as RGBA; RGB is zero where alpha is zero.",
            deps=[catalog_shards],
            group_name=GROUP,
            code_version="3",
            kinds={"opencv"},
        ),
        dg.AssetSpec(
            "hair_patches",
            description="Small cuts that lie wholly inside the hair, from the largest photo: the texture bank.",
            deps=[catalog_shards],
            group_name=GROUP,
            code_version="3",
            kinds={"opencv", "parquet"},
        ),
    ],
    can_subset=True,
    partitions_def=SHARDS,
    backfill_policy=SHARD_BACKFILL,
    **CPU,
)
def image_parts(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> Results:
    """One step for the three, so that a photo, its label and its sheet are decoded once for all of them."""
    from hair_pipeline.processing.shards import IMAGE_PARTS, make_image_parts

    selected = {key.to_user_string() for key in context.selected_asset_keys}
    assets = tuple(asset for asset in IMAGE_PARTS if asset in selected)
    yield from _process(context, pipeline, partial(make_image_parts, assets=assets))


@dg.asset(
    group_name=GROUP,
    deps=[catalog_shards, "hair_patches", "hair_only_images", "patch_encoder", "style_classifier"],
    partitions_def=SHARDS,
    backfill_policy=SHARD_BACKFILL,
    description="One vector per image that represents its hairstyle: by default of the frozen patch encoder, the style "
    "classifier and the colours (style_vectors.source of the profile).",
    code_version="2",
    kinds={"torch", "parquet"},
    **GPU,
)
def style_vectors(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> Results:
    from hair_pipeline.training.style_vectors import embed_shard

    yield from _process_one(context, pipeline, embed_shard)


@dg.asset(
    group_name=GROUP,
    deps=[catalog_shards, "bald_images", "hair_only_images", "hair_patches", "inpainting_base"],
    partitions_def=SHARDS,
    backfill_policy=SHARD_BACKFILL,
    description="VAE latents of photos, bald images, hair-only images and patches, computed once for training.",
    code_version="2",
    kinds={"torch", "diffusers"},
    **GPU,
)
def latents(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> Results:
    from hair_pipeline.training.latents import encode_shard

    yield from _process_one(context, pipeline, encode_shard)
