"""Group `inputs`: the two read-only inputs and the catalog that says what became of every file.

Heavy modules are imported inside the functions, here and in the other groups: loading definitions stays fast.
"""

import dagster as dg

from hair_pipeline.orchestration.compute_tags import CPU
from hair_pipeline.orchestration.metadata import counts_table
from hair_pipeline.orchestration.partitions import register_shards
from hair_pipeline.orchestration.resources import PipelineResource, explained

GROUP = "inputs"


@dg.observable_source_asset(
    group_name=GROUP,
    description="K-Hairstyle photos and labels (read-only; research use). Its data version is a content fingerprint.",
    op_tags=dict(CPU["op_tags"]),
)
def k_hairstyle_images(pipeline: PipelineResource) -> dg.DataVersion:
    from hair_pipeline.inputs.fingerprint import fingerprint_folder

    with explained():
        return dg.DataVersion(fingerprint_folder(pipeline.settings.k_hairstyle_root))


@dg.observable_source_asset(
    group_name=GROUP,
    description="training_face outputs: box, pose, embedding and mask sheet per face (read-only).",
    op_tags=dict(CPU["op_tags"]),
)
def training_face_outputs(pipeline: PipelineResource) -> dg.DataVersion:
    from hair_pipeline.inputs.fingerprint import fingerprint_folder

    with explained():
        return dg.DataVersion(fingerprint_folder(pipeline.settings.training_face_root))


@dg.asset(
    group_name=GROUP,
    deps=[k_hairstyle_images, training_face_outputs],
    description="One Parquet row per image and per rejected file: paths, person, attributes, mask origin, identity "
    "reliability, shard, split, and the reason for what is left out. Registers the shards.",
    code_version="1",
    kinds={"parquet", "pandas"},
    **CPU,
)
def catalog(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    from hair_pipeline.inputs.catalog import build_catalog

    with explained():
        result = build_catalog(pipeline.settings, pipeline.profile)
    accepted = result.frame[result.frame["accepted"]]
    new = register_shards(context.instance, list(accepted["shard"].unique()))
    people = accepted.groupby("split")["source"].nunique()
    return dg.MaterializeResult(
        data_version=dg.DataVersion(result.data_version),
        metadata={
            "images": len(accepted),
            "rejected_files": int((~result.frame["accepted"]).sum()),
            "people": int(accepted["source"].nunique()),
            "validation_people": int(people.get("validation", 0)),
            "shards": int(accepted["shard"].nunique()),
            "new_shards": len(new),
            "stage2_images": int(accepted["stage2"].sum()),
            "reliable_identities": int(accepted["identity_reliable"].sum()),
            **{f"by_{name}": counts_table(counts, name) for name, counts in result.summary.items() if counts},
            "path": dg.MetadataValue.path(str(pipeline.settings.catalog_path)),
        },
    )
