"""Jobs: named selections of the lineage for the UI.

Belongs here: job definitions. Does not belong here: launching the lineage from the command line (`launch.py`).
"""

from __future__ import annotations

import dagster as dg

inputs_job = dg.define_asset_job(
    "observe_inputs_and_catalog",
    selection=dg.AssetSelection.groups("inputs"),
    description="Look at the inputs and rebuild the catalog; registers new shards.",
)
processed_job = dg.define_asset_job(
    "process_shards",
    selection=dg.AssetSelection.assets("identity_embeddings", "bald_images", "hair_only_images", "hair_patches"),
    description="Cut the images of one or more shards into parts. Backfill it to process many.",
)
release_job = dg.define_asset_job(
    "release",
    selection=dg.AssetSelection.groups("release"),
    description="Export the approved model and, when a person has signed it off, promote it to production.",
)

JOBS = [inputs_job, processed_job, release_job]
