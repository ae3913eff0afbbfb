"""Do the stored patches hold hair and nothing else? Cut again from their photos and compared with the mask.

Belongs here: the measurement. Does not belong here: cutting (`patches`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from hair_pipeline.files import UnreadableImage, decode_image
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.largest import load_largest
from hair_pipeline.inputs.members import read_shards, shard_files
from hair_pipeline.inputs.samples import InputRoots
from hair_pipeline.settings import Settings

IMAGES = 48
"""So many photos are looked at, spread evenly over the shards."""
_PLACE = ["image_id", "size", "x", "y", "image"]


@dataclass
class Purity:
    """What was found.

    Attributes:
        share: one value per patch: the share of its pixels inside the hair mask, blurred faces excluded.
        difference: one value per patch: mean absolute difference from the same window of the photo, of 255.
        unreadable: image ids whose photo cannot be read any more.
    """

    share: list[float] = field(default_factory=list)
    difference: list[float] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def measure_purity(settings: Settings, images: int = IMAGES) -> Purity:
    """Look at all patches of some photos, the same ones every time.

    Raises:
        PipelineError: there is no catalog.
    """
    roots = InputRoots(settings.k_hairstyle_root, settings.training_face_root)
    found = Purity()
    for row, patches in _chosen(settings, images):
        try:
            photo = load_largest(row, roots)
        except UnreadableImage:
            found.unreadable.append(str(row.image_id))
            continue
        hair = photo.hair_mask & ~photo.blurred
        for patch in patches:
            left, top, size = int(patch["x"]), int(patch["y"]), int(patch["size"])
            window = slice(top, top + size), slice(left, left + size)
            stored: np.ndarray = decode_image(patch["image"])
            inside = photo.image[window].shape == stored.shape
            difference = np.abs(photo.image[window].astype(int) - stored).mean() if inside else math.inf
            found.share.append(float(hair[window].mean()) if inside else 0.0)
            found.difference.append(float(difference))
    return found


def _chosen(settings: Settings, images: int) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """Catalog rows, with the patches cut from them."""
    paths = shard_files(settings.processed / "hair_patches", read_shards(settings.catalog_path))
    for path in _spread(paths, images):
        table = pq.read_table(path, columns=["image_id"])
        ids = sorted(set(table.column("image_id").to_pylist()))
        wanted = set(_spread(ids, -(-images // min(len(paths), images))))
        patches = (
            pq.read_table(path, columns=_PLACE, filters=[("image_id", "in", wanted)]).to_pylist() if wanted else []
        )
        for row in read_catalog(settings.catalog_path, path.stem).itertuples() if patches else ():
            if row.image_id in wanted:
                yield row, [patch for patch in patches if patch["image_id"] == row.image_id]


def _spread(items: list[Any], count: int) -> list[Any]:
    """At most `count` items, evenly spaced."""
    chosen = min(count, len(items))
    return [items[number * len(items) // chosen] for number in range(chosen)]
