"""The work on one image, as it runs in worker processes; imports nothing slow to load.

Belongs here: load, change, encode, write, for each asset made per image. Does not belong here: the shard around it
(`shards`) and the pixels' arithmetic (`bald`, `hair_only`, `patches`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import encode_image, hash_bytes, write_bytes
from hair_pipeline.inputs.samples import Roots, load_photo, to_sample
from hair_pipeline.processing.bald import make_bald
from hair_pipeline.processing.hair_only import make_hair_only
from hair_pipeline.processing.patches import cut_patches
from hair_pipeline.processing.previews import thumbnail
from hair_pipeline.profile import ProcessingConfig

ROW_COLUMNS = (
    *("image_id", "source", "image_path", "label_path", "sheet_path", "width", "height", "curl_class", "scale"),
    *("mask_origin", "stage2", "has_face", "box_x1", "box_y1", "box_x2", "box_y2"),
)
"""What the work needs of a catalog row; beside them `shown` says whether the preview shows the image."""


@dataclass
class Outcome:
    """What became of one image: a file written, or rows for the table, or a failure.

    Attributes:
        failure: what went wrong; None when all went well.
        file: name, SHA-256 and bytes of the file written.
        rows: for the shard's table.
        numbers: summed up over the shard.
        tiles: for the preview, (T, T, 3) uint8.
    """

    image_id: str
    failure: str | None = None
    file: tuple[str, str, int] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    tiles: list[np.ndarray] = field(default_factory=list)


Work = Callable[[SimpleNamespace], Outcome]


def guarded(row: SimpleNamespace, *, work: Work) -> Outcome:
    """Run `work`; a bad image becomes a failure with its reason. Only a folder that cannot be written raises."""
    try:
        return work(row)
    except PipelineError:
        raise
    except Exception as error:  # whatever a hostile file provokes in a decoder
        return Outcome(row.image_id, failure=f"{type(error).__name__}: {error}"[:300])


def bald(row: SimpleNamespace, *, roots: Roots, config: ProcessingConfig, folder: Path) -> Outcome:
    """Write the bald image of one row."""
    sample = to_sample(load_photo(row, roots), config.size)
    image, repaint = make_bald(sample.image, sample.hair_mask, sample.face_mask, config.bald)
    outcome = _write(row, image, folder, ".jpg" if config.image_format == "compact" else ".png")
    outcome.numbers = {"repaint_share": float(repaint.mean())}
    if sample.hair_mask.any():
        hair = sample.image[sample.hair_mask].mean(axis=0)
        distance = np.linalg.norm(image[sample.hair_mask].mean(axis=0) - hair)
        outcome.numbers["fill_to_hair_distance"] = float(distance)
    outcome.tiles = [thumbnail(sample.image), thumbnail(image)] if row.shown else []
    return outcome


def hair_only(row: SimpleNamespace, *, roots: Roots, config: ProcessingConfig, folder: Path) -> Outcome:
    """Write the hair-only image of one row."""
    sample = to_sample(load_photo(row, roots), config.size)
    cut = make_hair_only(sample.image, sample.hair_mask)
    outcome = _write(row, cut, folder, ".webp" if config.image_format == "compact" else ".png")
    outcome.numbers = {"hair_share": float(sample.hair_mask.mean())}
    outcome.tiles = [thumbnail(cut)] if row.shown else []
    return outcome


def patches(row: SimpleNamespace, *, roots: Roots, config: ProcessingConfig) -> Outcome:
    """Cut the patches of one row from the photo at its own size, outside the region the release blurred."""
    photo = load_photo(row, roots)
    cut = cut_patches(photo.image, photo.hair_mask & ~photo.blurred, row.image_id, config.patches)
    extension = ".jpg" if config.image_format == "compact" else ".png"
    common = {"image_id": row.image_id, "person": row.source, "curl_class": row.curl_class, "scale": 1 / row.scale}
    outcome = Outcome(row.image_id)
    for patch in cut:
        place = {"size": patch.size, "x": patch.x, "y": patch.y}
        outcome.rows.append(common | place | {"image": encode_image(patch.image, extension)})
    outcome.numbers = {f"patches_{size}": float(sum(p.size == size for p in cut)) for size in config.patches.sizes}
    outcome.numbers["without_window"] = float(not cut)
    outcome.tiles = [thumbnail(cut[0].image, 64)] if row.shown and cut else []
    return outcome


def _write(row: SimpleNamespace, image: np.ndarray, folder: Path, extension: str) -> Outcome:
    data = encode_image(image, extension)
    name = f"{row.image_id}{extension}"
    write_bytes(folder / name, data)
    return Outcome(row.image_id, file=(name, hash_bytes(data), len(data)))
