"""Jobs: named selections of the lineage, for the UI, sensors and schedules.

Belongs here: job definitions, and which shards a training takes. Does not belong here: launching the lineage from the
command line (`launch.py`), and when jobs run by themselves (`sensors.py`, `schedules.py`).
"""

from __future__ import annotations

import dagster as dg

from hair_pipeline.orchestration.partitions import LEFT_OUT_TAG, SHARDS
from hair_pipeline.orchestration.rounds import range_tags
from hair_pipeline.orchestration.staleness import ShardVersions

IMAGE_ASSETS = ("identity_embeddings", "bald_images", "hair_only_images", "hair_patches")
"""Made from photos, a shard at a time."""
OUTSIDE = ("inpainting_base", "face_recogniser", "perceptual_trunk")
"""Weights from outside."""

TRAINED = ("patch_encoder", "style_classifier", "style_vectors", "latents", "stage1_checkpoint", "stage2_checkpoint")
"""What training everything again makes, in order."""
TRAINING_WAITS_FOR = ("catalog", *IMAGE_ASSETS, *TRAINED)
"""No training begins while one of these is being made: it would read what is half done."""

inputs_job = dg.define_asset_job(
    "observe_inputs_and_catalog",
    selection=dg.AssetSelection.assets(
        *OUTSIDE, "k_hairstyle_images", "training_face_outputs", "customer_photos", "catalog"
    ),
    description="Look at the inputs and at weights from outside, and rebuild the catalog; registers new shards.",
)
processed_job = dg.define_asset_job(
    "process_shards",
    selection=dg.AssetSelection.assets(*IMAGE_ASSETS),
    description="Cut the images of one or more shards into parts. Backfill it to process many.",
)
latents_job = dg.define_asset_job(
    "encode_shards",
    selection=dg.AssetSelection.assets("latents"),
    description="Encode one or more processed shards for training.",
)
training_job = dg.define_asset_job(
    "retrain",
    selection=dg.AssetSelection.assets(*TRAINED),
    description="Train everything again on all shards, in order. What is finished and unchanged is not done again. "
    "Launch it with its partitions, all of them.",
)
evaluation_job = dg.define_asset_job(
    "evaluate",
    selection=dg.AssetSelection.assets("eval_report"),
    description="Measure the new model on held-out people.",
)
comparison_job = dg.define_asset_job(
    "compare",
    selection=dg.AssetSelection.assets("ab_verdict"),
    description="A/B test of the new model against the one in production.",
)
release_job = dg.define_asset_job(
    "release",
    selection=dg.AssetSelection.groups("release"),
    description="Export the approved model and, when a person has signed it off, promote it to production.",
)

JOBS = [inputs_job, processed_job, latents_job, training_job, evaluation_job, comparison_job, release_job]


def training_tags(instance: dg.DagsterInstance) -> dict[str, str]:
    """The run tags of a training on all shards whose parts were made; empty where there are none.

    A shard that cannot be processed does not keep the others from being trained on. A run takes a range of shards, so
    those inside it are named.
    """
    registered = instance.get_dynamic_partitions(str(SHARDS.name))
    made = [ShardVersions(instance).of(dg.AssetKey(name)) for name in IMAGE_ASSETS]
    ready = [shard for shard in registered if all(shard in versions for versions in made)]
    if not ready:
        return {}
    inside = registered[registered.index(ready[0]) : registered.index(ready[-1])]
    missing = sorted(set(inside) - set(ready))
    return range_tags(ready) | ({LEFT_OUT_TAG: ",".join(missing)} if missing else {})
