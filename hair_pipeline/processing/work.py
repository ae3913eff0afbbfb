"""The work on one image, as it runs in worker processes: load once, make all parts asked for, write and record them.

Belongs here: load, change, encode, write, for each asset made per image. Does not belong here: the shard around it
(`shards`) and the pixels' arithmetic (`bald`, `hair_only`, `patches`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import encode_image, hash_bytes, write_unsynced
from hair_pipeline.inputs.largest import LargestPhoto, load_largest
from hair_pipeline.inputs.samples import Photo, Roots, Sample, load_photo, to_sample
from hair_pipeline.processing import journal
from hair_pipeline.processing.bald import make_bald
from hair_pipeline.processing.hair_only import make_hair_only
from hair_pipeline.processing.patch_rows import pack
from hair_pipeline.processing.patches import cut
from hair_pipeline.profile import ProcessingConfig

ROW_COLUMNS = (
    *("image_id", "source", "image_path", "label_path", "sheet_path", "width", "height", "curl", "curl_class"),
    "scale",
    *("mask_origin", "stage2", "has_face", "box_x1", "box_y1", "box_x2", "box_y2"),
    *("largest_path", "largest_label_path", "largest_width", "largest_height"),
)
"""What the work needs of a catalog row."""


@dataclass
class Made:
    """What one image came to for one asset.

    Attributes:
        file: name, SHA-256 and bytes of the image file written, where the asset has one.
        numbers: summed up over the shard.
        left_out: reasons for which the image gave less than it might.
    """

    image_id: str
    file: tuple[str, str, int] | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def from_record(cls, facts: Mapping[str, Any]) -> Made:
        """From the journal."""
        return cls(**(dict(facts) | {"file": None if facts["file"] is None else tuple(facts["file"])}))


@dataclass
class Outcome:
    """What became of one image: asset -> what was made, or why it failed."""

    image_id: str
    made: dict[str, Made] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """One asset of a shard: where its image files go (None for a table), and its journal."""

    asset: str
    folder: Path | None
    journal: Path


class Picture:
    """One image, loaded when first asked for and once only, whatever is made of it."""

    def __init__(self, row: SimpleNamespace, roots: Roots, size: int) -> None:
        self.row, self.roots, self.size = row, roots, size

    @cached_property
    def _photo(self) -> Photo:
        return load_photo(self.row, self.roots)

    @cached_property
    def sample(self) -> Sample:
        """The processed square."""
        return to_sample(self._photo, self.size)

    @cached_property
    def largest(self) -> LargestPhoto:
        """The largest photo of the image."""
        return load_largest(self.row, self.roots, self._photo)


@dataclass(frozen=True)
class Worker:
    """Makes the parts of one image that are still missing; picklable.

    Args:
        roots: of the inputs.
        config: how.
        targets: assets to make.
    """

    roots: Roots
    config: ProcessingConfig
    targets: tuple[Target, ...]

    def __call__(self, item: tuple[SimpleNamespace, tuple[str, ...]]) -> Outcome:
        """Make the assets named beside a row. A bad image becomes a failure with its reason.

        Raises:
            PipelineError: a folder that cannot be written; nothing else.
        """
        row, assets = item
        picture, outcome = Picture(row, self.roots, self.config.size), Outcome(row.image_id)
        for target in self.targets:
            if target.asset not in assets:
                continue
            try:
                made, blob = MAKERS[target.asset](picture, self.config, target.folder)
            except PipelineError:
                raise
            except Exception as error:  # whatever a hostile file provokes in a decoder
                outcome.failed[target.asset] = f"{type(error).__name__}: {error}"[:300]
                continue
            journal.append(target.journal, asdict(made), blob)
            outcome.made[target.asset] = made
        return outcome


def _bald(picture: Picture, config: ProcessingConfig, folder: Path | None) -> tuple[Made, bytes]:
    """Write the bald image."""
    sample = picture.sample
    masks = sample.hair_mask, sample.face_mask
    image, repaint = make_bald(sample.image, *masks, config.bald, box=sample.box, window=sample.window)
    made = _write(picture, image, folder, ".jpg" if config.image_format == "compact" else ".png")
    made.numbers = {"repaint_share": float(np.count_nonzero(repaint) / repaint.size)}
    if sample.hair_mask.any():
        made.numbers["fill_to_hair_distance"] = fill_to_hair_distance(sample, image)
    return made, b""


def fill_to_hair_distance(sample: Sample, bald: np.ndarray) -> float:
    """Distance between the mean colour of the hair and of what stands in its place, in RGB units of 0-255.

    Of every fourth row, or of all where those hold no hair.
    """
    mask = np.ascontiguousarray(sample.hair_mask).view(np.uint8)
    left, top, width, height = cv2.boundingRect(mask)
    columns = slice(left, left + width)
    every_fourth = slice(-(-top // 4) * 4, top + height, 4), columns
    box = every_fourth if mask[every_fourth].any() else (slice(top, top + height), columns)
    difference = np.subtract(_mean(sample.image[box], mask[box]), _mean(bald[box], mask[box]))
    return float(np.linalg.norm(difference))


def _hair_only(picture: Picture, config: ProcessingConfig, folder: Path | None) -> tuple[Made, bytes]:
    """Write the hair-only image."""
    sample = picture.sample
    image = make_hair_only(sample.image, sample.hair_mask, config.hair_only)
    made = _write(picture, image, folder, ".webp" if config.image_format == "compact" else ".png")
    made.numbers = {"hair_share": float(np.count_nonzero(sample.hair_mask) / sample.hair_mask.size)}
    return made, b""


def _patches(picture: Picture, config: ProcessingConfig, _: Path | None) -> tuple[Made, bytes]:
    """Cut the patches from the largest photo there is, outside the region the release blurred.

    Returns:
        Also the patches' rows, packed.
    """
    row, photo = picture.row, picture.largest
    found = cut(photo.image, np.greater(photo.hair_mask, photo.blurred), row.image_id, config.patches)
    extension = ".jpg" if config.image_format == "compact" else ".png"
    made = Made(row.image_id, left_out=[f"{reason}_{size}" for size, reason in found.without.items()])
    if photo.fault:
        made.left_out.append("largest_photo_is_damaged")
    sizes = [patch.size for patch in found.patches]
    made.numbers = {f"patches_{size}": float(sizes.count(size)) for size in config.patches.sizes}
    made.numbers["flawed_windows"] = float(found.flawed)
    of_photo = {"image_id": row.image_id, "person": row.source, "curl": row.curl, "curl_class": row.curl_class}
    of_photo |= {"scale": photo.scale(config.size), "photo": photo.path}
    return made, pack(of_photo, found.patches, [encode_image(patch.image, extension) for patch in found.patches])


Maker = Callable[[Picture, ProcessingConfig, Path | None], tuple[Made, bytes]]
MAKERS: Mapping[str, Maker] = {"bald_images": _bald, "hair_only_images": _hair_only, "hair_patches": _patches}
"""Asset -> how it is made of one picture."""


def _write(picture: Picture, image: np.ndarray, folder: Path | None, extension: str) -> Made:
    assert folder is not None
    data = encode_image(image, extension)
    name = f"{picture.row.image_id}{extension}"
    write_unsynced(folder / name, data)
    return Made(picture.row.image_id, file=(name, hash_bytes(data), len(data)))


def _mean(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.array(cv2.mean(image, mask=mask)[:3])
