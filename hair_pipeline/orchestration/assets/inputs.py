"""Group `inputs`: the two read-only inputs and the catalog that says what became of every file.

Heavy modules are imported inside the functions, here and in the other groups: loading definitions stays fast.
"""

import dagster as dg

from hair_pipeline.orchestration.compute_tags import CPU
from hair_pipeline.orchestration.metadata import counts_table, shares_table
from hair_pipeline.orchestration.partitions import register_shards
from hair_pipeline.orchestration.resources import PipelineResource, explained

GROUP = "inputs"


@dg.observable_source_asset(
    group_name=GROUP,
    description="K-Hairstyle photos and labels (read-only; research use). Its data version is a content fingerprint.",
    tags={"dagster/kind/folder": ""},
    op_tags=dict(CPU["op_tags"]),
)
def k_hairstyle_images(pipeline: PipelineResource) -> dg.DataVersion:
    from hair_pipeline.inputs.fingerprint import fingerprint_folder

    with explained():
        settings = pipeline.settings
        remembered = settings.processed / "catalog_cache" / "k_hairstyle_fingerprint.parquet"
        return dg.DataVersion(fingerprint_folder(settings.k_hairstyle_root, remembered))


@dg.observable_source_asset(
    group_name=GROUP,
    description="training_face outputs: box, pose, embedding and mask sheet per face (read-only).",
    tags={"dagster/kind/folder": ""},
    op_tags=dict(CPU["op_tags"]),
)
def training_face_outputs(pipeline: PipelineResource) -> dg.DataVersion:
    from hair_pipeline.inputs.fingerprint import fingerprint_folder

    with explained():
        settings = pipeline.settings
        remembered = settings.processed / "catalog_cache" / "training_face_fingerprint.parquet"
        return dg.DataVersion(fingerprint_folder(settings.training_face_root, remembered))


@dg.asset(
    group_name=GROUP,
    deps=[k_hairstyle_images, training_face_outputs],
    description="One Parquet row per image and per rejected file: paths, person, attributes, mask origin, identity "
    "reliability, shard, split, and the reason for what is left out. Registers the shards.",
    code_version="2",
    kinds={"parquet", "pandas"},
    **CPU,
)
def catalog(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    from hair_pipeline.inputs.catalog import build_catalog, list_shards

    with explained():
        result = build_catalog(pipeline.settings, pipeline.profile)
        shards = list_shards(pipeline.settings.catalog_path)
    summary = result.summary
    new = register_shards(context.instance, shards)
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
            "stage2_images": summary["stage2"].get("eligible", 0),
            "reliable_identities": summary["identity"].get("reliable", 0),
            "unchanged": result.unchanged,
            **{f"mask_iou_quantile_{level}": iou for level, iou in summary.mask_iou.items()},
            **{f"by_{name}": counts_table(counts, name) for name, counts in summary.counts.items() if counts},
            "train_against_validation": shares_table(summary.shares),
            "path": dg.MetadataValue.path(str(pipeline.settings.catalog_path)),
        },
    )
