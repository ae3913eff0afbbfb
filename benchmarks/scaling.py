"""How preparation scales: with worker processes, and in memory with the number of images.

    uv run python benchmarks/scaling.py [--images 20000]

The photos are a few rendered people, repeated under other names by hard links. Timed and measured is
`make_image_parts` in a process of its own, as the assets run it: shards of 1,000 images, one after another.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hair_pipeline.inputs.catalog import build_catalog, read_catalog
from hair_pipeline.inputs.workers import kept_pool
from hair_pipeline.processing.shards import make_image_parts
from hair_pipeline.profile import Profile
from hair_pipeline.sample.write import write_sample
from hair_pipeline.settings import Settings

SHARD = 1000
VIEWS = 5
ALL = 451_000
CORES = (1, 2, 4, 8, 16, 32, 64)
METHODS = {"telea": "telea", "masked blur": "gaussian_blur"}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--images", type=int, default=20_000, help="images of the large set (default 20,000)")
    arguments.add_argument("--small", type=int, default=1000, help="images of the small set (default 1,000)")
    arguments.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.work:
        work(Path(given.work[0]), given.work[1], int(given.work[2]))
        return
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        run(Path(folder), given.small, given.images)


def run(root: Path, small: int, large: int) -> None:
    """Make the inputs, time one worker against two, compare peak memory, print the tables."""
    few, many = make_inputs(root, small), make_inputs(root, large)
    speeds: dict[str, float] = {}
    print("| method | 1 worker, images/s | 2 workers, images/s | ratio |\n|---|---|---|---|")
    for label, method in METHODS.items():
        one = small / measured(few, method, 1)["seconds"]
        two = small / measured(few, method, 2)["seconds"]
        speeds[label] = one
        print(f"| {label} | {one:.1f} | {two:.1f} | {two / one:.2f}x |", flush=True)
    print("\n| images | peak memory of parent, MiB | of one worker, MiB |\n|---|---|---|")
    for root_, images in ((few, small), (many, large)):
        peak = measured(root_, "gaussian_blur", 2)
        print(f"| {images:,} | {peak['parent']:.0f} | {peak['worker']:.0f} |", flush=True)
    print("\nHours for 451,000 images of 512 x 512 (extrapolated from one worker; the disk's speed is not in it)\n")
    print("| cores | " + " | ".join(map(str, CORES)) + " |\n|---|" + "---|" * len(CORES))
    for label, speed in speeds.items():
        print(f"| {label} | " + " | ".join(f"{ALL / speed / cores / 3600:.2f}" for cores in CORES) + " |")


def make_inputs(root: Path, images: int) -> Path:
    """A tree of `images` photos: the first people rendered, the others hard links to them under other names."""
    people = min(images, 200) // VIEWS
    first = root / "rendered"
    write_sample(first, people=people, views=VIEWS, customers=0)
    target = root / str(images)
    for copy in range(-(-images // (people * VIEWS))):
        link_copy(first, target, copy)
    face = next(path for path in sorted((first / "training_face").iterdir()) if path.is_dir())
    shutil.copytree(face, target / "one_face" / face.name)
    profile = Profile.model_validate({"name": "benchmark", "inputs": {"shard_size": SHARD}})
    build_catalog(settings_of(target), profile)
    return target


def link_copy(first: Path, target: Path, copy: int) -> None:
    """All rendered people once more, each `source` with the copy's number appended."""
    for label in sorted((first / "k_hairstyle").rglob("*.json")):
        values = json.loads(label.read_text(encoding="utf-8"))
        old = values["source"]
        new = f"{old}{copy:04d}"
        image = next((first / "k_hairstyle").rglob(values["filename"]))
        for path in (image, label):
            inside = Path(*(part.replace(old, new) for part in path.relative_to(first).parts))
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            if path == image:
                os.link(path, target / inside)
            else:
                values |= {"source": new, "filename": values["filename"].replace(old, new)}
                (target / inside).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def settings_of(root: Path) -> Settings:
    """Settings of one of the trees."""
    return Settings(
        k_hairstyle_root=root / "k_hairstyle", training_face_root=root / "one_face", training_root=root / "training"
    )


def measured(root: Path, method: str, cores: int) -> dict[str, float]:
    """Run `work` in a process of its own; its seconds and peak memory."""
    for asset in ("bald_images", "hair_only_images", "hair_patches"):
        shutil.rmtree(settings_of(root).processed / asset, ignore_errors=True)
    command = [sys.executable, __file__, "--work", str(root), method, str(cores)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def work(root: Path, method: str, cores: int) -> None:
    """Make all shards on so many cores; prints seconds, without the start of the processes, and peak memory."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    settings = settings_of(root)
    profile = Profile.model_validate({"name": "benchmark", "processing": {"bald": {"method": method}}})
    shards = sorted(read_catalog(settings.catalog_path, columns=["shard"]).shard.dropna().unique())
    peaks = {"worker": 0.0}
    threading.Thread(target=watch, args=(peaks,), daemon=True).start()
    start = time.perf_counter()
    with kept_pool():
        for shard in shards:
            make_image_parts(shard, settings, profile)
    seconds = time.perf_counter() - start
    parent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "parent": parent, **peaks}))


def watch(peaks: dict[str, float]) -> None:
    """Keep the largest peak memory of a child process, from /proc (Linux)."""
    own = str(os.getpid())
    while True:
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                facts = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            except OSError:
                continue
            if facts["PPid"].strip() == own and "VmHWM" in facts:
                peaks["worker"] = max(peaks["worker"], int(facts["VmHWM"].split()[0]) / 1024)
        time.sleep(0.5)


if __name__ == "__main__":
    main()
