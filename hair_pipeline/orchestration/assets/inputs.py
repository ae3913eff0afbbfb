"""Group `inputs`: the read-only inputs and the catalog that says what became of every file.

Belongs here: observing, registering and removing shards. Does not belong here: reading the inputs (`inputs.catalog`).

Heavy modules are imported inside the functions, here and in the other groups: loading definitions stays fast.
"""

from pathlib import Path

import dagster as dg

from hair_pipeline.files import one_at_a_time
from hair_pipeline.orchestration.compute_tags import CPU
from hair_pipeline.orchestration.leftovers import remove_gone_shards
from hair_pipeline.orchestration.metadata import counts_table, shares_table
from hair_pipeline.orchestration.partitions import SHARDS, observe_shards, register_shards
from hair_pipeline.orchestration.resources import PipelineResource, explained

GROUP = "inputs"
INPUTS_STATE = "inputs_state"
"""Metadata of the catalog: what a quick look at the input folders gave before it was built."""


@dg.observable_source_asset(
    group_name=GROUP,
    description="K-Hairstyle photos and labels (read-only; research use). Its data version is a content fingerprint.",
    tags={"dagster/kind/folder": ""},
    op_tags=dict(CPU["op_tags"]),
)
def k_hairstyle_images(pipeline: PipelineResource) -> dg.DataVersion:
    return _content("k_hairstyle", pipeline.settings.k_hairstyle_root, pipeline)


@dg.observable_source_asset(
    group_name=GROUP,
    description="training_face outputs: box, pose, embedding and mask sheet per face (read-only).",
    tags={"dagster/kind/folder": ""},
    op_tags=dict(CPU["op_tags"]),
)
def training_face_outputs(pipeline: PipelineResource) -> dg.DataVersion:
    return _content("training_face", pipeline.settings.training_face_root, pipeline)


@dg.observable_source_asset(
    group_name=GROUP,
    description="Customer photos for the A/B test (read-only; private). Its data version is a content fingerprint.",
    tags={"dagster/kind/folder": ""},
    op_tags=dict(CPU["op_tags"]),
)
def customer_photos(pipeline: PipelineResource) -> dg.DataVersion:
    customers = pipeline.settings.customers
    if customers is None or (pipeline.settings.customers_root is None and not customers.is_dir()):
        return dg.DataVersion("none")
    return _content("customers", customers, pipeline)


def _content(name: str, folder: Path, pipeline: PipelineResource) -> dg.DataVersion:
    """A fingerprint of a folder's files; those that look unchanged since the last time are not read again."""
    from hair_pipeline.inputs.fingerprint import fingerprint_folder

    with explained():
        remembered = pipeline.settings.processed / "catalog_cache" / f"{name}_fingerprint.parquet"
        return dg.DataVersion(fingerprint_folder(folder, remembered))


@dg.asset(
    group_name=GROUP,
    deps=[k_hairstyle_images, training_face_outputs],
    description="One Parquet row per image and per rejected file: paths, person, attributes, mask origin, identity "
    "reliability, shard, split, and the reason for what is left out. Registers the shards, and removes the outputs of "
    "those that are gone.",
    code_version="3",
    kinds={"parquet", "pandas"},
    **CPU,
)
def catalog(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    from hair_pipeline.inputs.catalog import build_catalog
    from hair_pipeline.inputs.folder_state import inputs_state
    from hair_pipeline.inputs.origin import record_origin, refuse_sample_in_place_of_others
    from hair_pipeline.inputs.shard_versions import shard_versions

    # Two at once would give the same shard to different people, and each would undo the other's shards.
    with explained(), one_at_a_time(pipeline.settings.processed / "catalog.lock"):
        refuse_sample_in_place_of_others(pipeline.settings)
        state = inputs_state(pipeline.settings)  # before anything is read: what comes later is another state
        result = build_catalog(pipeline.settings, pipeline.profile)
        record_origin(pipeline.settings)
        shards = shard_versions(pipeline.settings.catalog_path)
        new = register_shards(context.instance, list(shards))
        changed = observe_shards(context, catalog_shards.key, shards)
    summary = result.summary
    tidied = remove_gone_shards(context, pipeline.settings, shards, summary["files"].get("unread", 0))
    return dg.MaterializeResult(
        data_version=dg.DataVersion(result.data_version),
        metadata={
            "images": summary["files"]["images_accepted"],
            "rejected_files": summary["files"]["rows_rejected"],
            "people": summary["people"]["people"],
            "people_in_training_and_validation": summary["people"]["in_training_and_validation"],
            "validation_people": summary["people"].get("validation", 0),
            "shards": len(shards),
            "new_shards": len(new),
            "new_or_changed_shards": len(changed),
            **tidied,
            "stage2_images": summary["stage2"].get("eligible", 0),
            "reliable_identities": summary["identity"].get("reliable", 0),
            "unchanged": result.unchanged,
            **{f"mask_iou_quantile_{level}": iou for level, iou in summary.mask_iou.items()},
            **{f"by_{name}": counts_table(counts, name) for name, counts in summary.counts.items() if counts},
            "train_against_validation": shares_table(summary.shares),
            "path": dg.MetadataValue.path(str(pipeline.settings.catalog_path)),
            INPUTS_STATE: state,
        },
    )


catalog_shards = dg.AssetSpec(
    "catalog_shards",
    deps=[catalog],
    partitions_def=SHARDS,
    group_name=GROUP,
    description="The catalog's rows of one shard. Observed by the step `catalog`; a shard's data version changes only "
    "with its own rows, so that new people do not make the other shards out of date.",
    kinds={"parquet"},
)
