"""How fast images are prepared on one core, against the straightforward way (`naive_preparation.py`).

    uv run python benchmarks/preparation.py [--images 600]

Same photos (rendered people, 512 x 512 JPEG, hair as a polygon in the label), same products (bald image, hair-only
image, patches, all encoded and on disk), one run, one core. The ways take turns in rounds, so that what else the
machine does meets all of them alike. Timed is `make_image_parts`, what the assets run: with catalog row, label,
hashes, journal, contact sheet and manifest.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import cv2
import naive_preparation
import numpy as np

from hair_pipeline.files import encode_image, read_image
from hair_pipeline.inputs.catalog import build_catalog, read_catalog
from hair_pipeline.inputs.samples import load_sample
from hair_pipeline.processing.bald import INPAINT_RADIUS, fill, repaint_mask
from hair_pipeline.processing.shards import make_image_parts
from hair_pipeline.profile import Profile
from hair_pipeline.sample.write import write_sample
from hair_pipeline.settings import Settings

ROUNDS = 2
VIEWS = 5
BASELINE = "straightforward script (Telea r5, PNG)"
OURS = {
    "telea, compact": {},
    "telea, all lossless (png)": {"image_format": "png"},
    "masked blur, compact": {"bald": {"method": "gaussian_blur"}},
}
FLOOR = "floor: decode and a minimal JPEG"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--images", type=int, default=600, help="photos per way (default 600)")
    images = arguments.parse_args().images
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="preparation-") as folder:
        run(Path(folder), images)


def run(root: Path, images: int) -> None:
    """Time all ways and print the table."""
    settings = make_inputs(root, images)
    shards = sorted(read_catalog(settings.catalog_path).query("accepted").shard.unique())[:ROUNDS]
    seconds = dict.fromkeys((BASELINE, *OURS, FLOOR), 0.0)
    busy = dict.fromkeys(seconds, 0.0)
    size = dict.fromkeys(seconds, 0)
    done = 0
    for shard in shards:
        rows = list(read_catalog(settings.catalog_path, shard).itertuples())
        done += len(rows)
        for name in seconds:
            out = root / "out"
            out.mkdir()
            start = time.perf_counter(), time.process_time()
            if name == BASELINE:
                for row in rows:
                    naive_preparation.prepare(*paths(row, settings), out)
            elif name == FLOOR:
                for row in rows:
                    image = read_image(paths(row, settings)[0])
                    (out / f"{row.image_id}.jpg").write_bytes(encode_image(image[::4, ::4], ".jpg", 80))
            else:
                profile = Profile.model_validate({"name": "benchmark", "processing": OURS[name]})
                (out / "processed").mkdir()
                shutil.copy(settings.catalog_path, out / "processed")
                start = time.perf_counter(), time.process_time()
                make_image_parts(shard, settings.model_copy(update={"training_root": out}), profile)
            seconds[name] += time.perf_counter() - start[0]
            busy[name] += time.process_time() - start[1]
            size[name] += measure(out)
            shutil.rmtree(out)
    report(seconds, busy, size, done, *hole_error(settings, shards))


def make_inputs(root: Path, images: int) -> Settings:
    """Rendered people in one shard per round; no training_face output but one, so that the polygon is the mask."""
    write_sample(root, people=-(-images // VIEWS), views=VIEWS, customers=0)
    face = next(path for path in sorted((root / "training_face").iterdir()) if path.is_dir())
    shutil.copytree(face, root / "one_face" / face.name, dirs_exist_ok=True)
    settings = Settings(
        k_hairstyle_root=root / "k_hairstyle", training_face_root=root / "one_face", training_root=root / "training"
    )
    shard_size = max(VIEWS, images // ROUNDS)
    build_catalog(settings, Profile.model_validate({"name": "benchmark", "inputs": {"shard_size": shard_size}}))
    return settings


def paths(row: object, settings: Settings) -> tuple[Path, Path]:
    """Photo and label of a catalog row."""
    root = settings.k_hairstyle_root
    return root / row.image_path, root / row.label_path  # type: ignore[attr-defined]


def measure(folder: Path) -> int:
    """Bytes of the products."""
    products = (".jpg", ".png", ".webp", ".parquet")
    files = (path for path in folder.rglob("*") if path.suffix in products)
    kept = (path for path in files if path.name != "catalog.parquet" and not path.stem.endswith((".preview", ".steps")))
    return sum(path.stat().st_size for path in kept)


def hole_error(settings: Settings, shards: list[str]) -> tuple[float, float]:
    """Root mean square difference in the hole from Telea r5 at full size: over all pixels, and of the worst image."""
    squares: list[float] = []
    config = Profile(name="benchmark").processing.bald
    for shard in shards:
        for row in list(read_catalog(settings.catalog_path, shard).itertuples())[::4]:
            sample = load_sample(row, settings)
            hole = repaint_mask(sample.hair_mask, sample.face_mask, config)
            full = cv2.inpaint(sample.image, hole.astype(np.uint8), 5, cv2.INPAINT_TELEA)
            difference = full[hole].astype(float) - fill(sample.image, hole, config)[hole]
            squares.append(float((difference**2).mean()))
    return float(np.sqrt(np.mean(squares))), float(np.sqrt(np.max(squares)))


def report(
    seconds: dict[str, float], busy: dict[str, float], size: dict[str, int], images: int, error: float, worst: float
) -> None:
    """Print the table and the line that sums it up."""
    speed = {name: images / value for name, value in seconds.items()}
    print(f"{images} photos of 512 x 512, one core\n")
    print("| way | images/s | against straightforward | the same in processor time | KB per image | bytes |")
    print("|---|---|---|---|---|---|")
    for name in seconds:
        ratios = f"{speed[name] / speed[BASELINE]:.1f}x | {busy[BASELINE] / busy[name]:.1f}x"
        kilobytes = f"{size[name] / images / 1000:.0f} | {size[name] / size[BASELINE]:.2f}x"
        print(f"| {name} | {speed[name]:.1f} | {ratios} | {kilobytes} |")
    pair = f"half size, radius {INPAINT_RADIUS} in pixels of the full size, against full size, radius 5"
    print(f"\nTelea at {pair}, in the hole: RMSE {error:.1f}/255", end="")
    print(f" (worst image {worst:.1f}/255)\n")
    ours = [speed[name] / speed[BASELINE] for name in OURS]
    print(f"preparation: telea {ours[0]:.1f}x, masked blur {ours[2]:.1f}x, floor {speed[FLOOR]:.0f} images/s")


if __name__ == "__main__":
    main()
