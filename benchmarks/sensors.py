"""Time of one tick of each sensor at K-Hairstyle's size: 4,347 people, 452,088 photos, 483 shards.

    uv run python benchmarks/sensors.py [--people 4347] [--views 104] [--folder DIR]

Writes folders with empty files in both layouts (what sensors look at are names and times), a catalog with a row per
photo, and an instance in which every shard is processed; then evaluates each sensor twice and prints a table. The
folder (about 1.8 million names) is deleted afterwards.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_TAG,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)

SHARD = 1000
TICKS = ("new_inputs", "process_new_shards", "encode_processed_shards", "retrain_on_new_people")
MADE = ("identity_embeddings", "bald_images", "hair_only_images", "hair_patches", "latents")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=4347)
    parser.add_argument("--views", type=int, default=104)
    parser.add_argument("--folder", type=Path, help="on the file system to be measured; a temporary one if left out")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        measure(root, arguments.people, arguments.views)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def measure(root: Path, people: int, views: int) -> None:
    for name in ("k_hairstyle", "training_face", "training"):
        (root / name).mkdir()
        os.environ[f"HAIR_PIPELINE_{name.upper()}_ROOT"] = str(root / name)
    started = time.perf_counter()
    write_folders(root, people, views)
    shards = write_catalog(root, people, views)
    print(f"{people:,} people, {people * views:,} photos and labels, {len(shards)} shards, written in", end=" ")
    print(f"{time.perf_counter() - started:.0f} s\n\n| sensor | first tick, s | second tick, s | processor, s | says |")
    print("|---|---|---|---|---|")

    from hair_pipeline.orchestration.build import build_defs
    from hair_pipeline.orchestration.resources import PipelineResource

    repository = build_defs().get_repository_def()
    (root / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(root / "dagster")) as instance:
        record(instance, repository, shards)
        for name in TICKS:
            seconds, processor, said = [], [], ""
            for _ in range(2):
                with dg.build_sensor_context(
                    instance, repository_def=repository, resources={"pipeline": PipelineResource()}
                ) as context:
                    before, cpu = time.perf_counter(), _cpu()
                    done = repository.get_sensor_def(name).evaluate_tick(context)
                    seconds.append(time.perf_counter() - before)
                    processor.append(_cpu() - cpu)
                    said = done.skip_message or f"{len(done.run_requests or [])} runs requested"
            cpus = " and ".join(f"{value:.2f}" for value in processor)
            print(f"| {name} | {seconds[0]:.2f} | {seconds[1]:.2f} | {cpus} | {said} |", flush=True)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def write_folders(root: Path, people: int, views: int) -> None:
    """Images and labels in parallel trees, and two folders of training_face for each photo."""
    for person in range(people):
        source = f"CP{100_000 + person}"
        inner = f"0002.mqset/{person % 31 + 1:04d}.style/{person + 1:04d}.{source}"
        for kind, suffix in (("images", "jpg"), ("labels", "json")):
            folder = root / f"k_hairstyle/Training/mqset/{kind}/{inner}"
            folder.mkdir(parents=True)
            for view in range(views):
                os.close(os.open(f"{folder}/{source}-{view:03d}.{suffix}", os.O_CREAT))
        for view in range(views):
            os.makedirs(f"{root}/training_face/{source}-{view:03d}/face_01")  # noqa: PTH103 (half a million)


def write_catalog(root: Path, people: int, views: int) -> list[str]:
    """The columns that sensors read; returns the shards."""
    rows = np.arange(people * views)
    per_shard = max(1, SHARD // views) * views
    table = pa.table(
        {
            "source": [f"CP{100_000 + row // views}" for row in rows],
            "shard": [f"shard_{row // per_shard:04d}" for row in rows],
            "accepted": np.ones(len(rows), bool),
            "split": np.where((rows // views) % 20 == 0, "validation", "train"),
        }
    )
    (root / "training/processed").mkdir()
    pq.write_table(table, root / "training/processed/catalog.parquet", compression="zstd")
    return sorted(set(table.column("shard").to_pylist()))


def record(instance: dg.DagsterInstance, repository: dg.RepositoryDefinition, shards: list[str]) -> None:
    """Observe and materialise every shard, with a picture of 15 KB in each event as in a real one."""
    instance.add_dynamic_partitions("shards", shards)
    graph = repository.asset_graph
    picture = {"preview": dg.MetadataValue.md("x" * 15_000)}
    for shard in shards:
        tags = {DATA_VERSION_TAG: "1"}
        instance.report_runless_asset_event(dg.AssetObservation("catalog_shards", partition=shard, tags=tags))
    for asset in MADE:
        node = graph.get(dg.AssetKey(asset))
        tags = {DATA_VERSION_TAG: "1", CODE_VERSION_TAG: str(node.code_version)}
        for parent in node.parent_keys:
            version = "1" if graph.get(parent).is_partitioned else "INITIAL"
            tags |= {get_input_data_version_tag(parent): version, get_input_event_pointer_tag(parent): "1"}
        for shard in shards:
            event = dg.AssetMaterialization(asset, partition=shard, tags=tags, metadata=picture)
            instance.report_runless_asset_event(event)


if __name__ == "__main__":
    main()
