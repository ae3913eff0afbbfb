"""What orchestration costs: a backfill of many shards in one command, beside the sum of the work itself.

    uv run python benchmarks/backfill.py [--shards 100] [--images 240] [--people-per-shard 4]

Renders a few people and writes them out under many names, builds the catalog, then times, one after the other,
the shard functions called in a plain loop in one process, and `hair-pipeline run` on the same shards with the same
settings, from the start of the process to its end. Prints a table; the overhead is the second against the first.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PARTS = "key:identity_embeddings or key:bald_images or key:hair_only_images or key:hair_patches"
RENDERED = 4
WORK = """
from hair_pipeline.inputs.shard_versions import shard_versions
from hair_pipeline.inputs.workers import kept_pool
from hair_pipeline.processing.shards import gather_identity_embeddings, make_image_parts
from hair_pipeline.settings import load_settings
settings = load_settings()
profile = settings.profile_values
with kept_pool():
    for shard in shard_versions(settings.catalog_path):
        make_image_parts(shard, settings, profile)
        gather_identity_embeddings(shard, settings, profile)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--images", type=int, default=240, help="per shard")
    parser.add_argument("--people-per-shard", type=int, default=4)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    try:
        measure(root, arguments.shards, arguments.images, arguments.people_per_shard)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def measure(root: Path, shards: int, images: int, people: int) -> None:
    from hair_pipeline.sample.write import write_sample

    write_sample(root / "rendered", people=RENDERED, views=images // people, customers=0)
    for number in range(shards * people):
        multiply(root, number)
    (root / "profile.yaml").write_text(f"name: backfill\ninputs: {{shard_size: {images}}}\n")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HAIR_PIPELINE_", "DAGSTER"))},
        "HAIR_PIPELINE_PROFILE": str(root / "profile.yaml"),
        "HAIR_PIPELINE_K_HAIRSTYLE_ROOT": str(root / "k_hairstyle"),
        "HAIR_PIPELINE_TRAINING_FACE_ROOT": str(root / "training_face"),
    }
    run = [sys.executable, "-m", "hair_pipeline.cli", "run", "--select"]
    ways = {"the work itself": [sys.executable, "-c", WORK], "hair-pipeline run": [*run, PARTS]}
    print(f"{shards} shards of {images} images, {os.cpu_count()} cores\n")
    print("| way | seconds | processor seconds | against the work itself | processor |\n|---|---|---|---|---|")
    base: tuple[float, float] | None = None
    for way, command in ways.items():
        here = environment | {"HAIR_PIPELINE_TRAINING_ROOT": str(root / way.replace(" ", "_"))}
        timed([*run, "key:catalog"], here)
        seconds, processor = timed(command, here)
        base = base or (seconds, processor)
        shares = f"{seconds / base[0]:.2f} | {processor / base[1]:.2f}"
        print(f"| {way} | {seconds:.1f} | {processor:.1f} | {shares} |", flush=True)


def multiply(root: Path, number: int) -> None:
    """Write a rendered person out under another name, in both inputs."""
    sources = sorted({path.parent.name for path in (root / "rendered/k_hairstyle").rglob("*.jpg")})
    folder = sources[number % len(sources)]
    old = folder.partition(".")[2] or folder
    new = f"DS{200_000 + number}"
    for kind in ("k_hairstyle", "training_face"):
        for path in (root / "rendered" / kind).rglob("*"):
            relative = path.relative_to(root / "rendered").as_posix()
            if not path.is_file() or old not in relative:
                continue
            target = root / relative.replace(folder, f"{number:04d}.{new}").replace(old, new)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".json":
                target.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
            else:
                os.link(path, target)


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and processor seconds of a command and all it starts."""
    before, usage = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
    return time.perf_counter() - before, processor


if __name__ == "__main__":
    main()
