"""A picture of held-out people, each wearing the styles of others: rows are people, columns are styles.

Belongs here: choosing the people and the styles, and putting the grid together. Does not belong here: drawing
(`contenders`) and numbers (`report`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.cases import make_case
from hair_pipeline.evaluation.contenders import Drawing, resolve
from hair_pipeline.files import encode_image, write_bytes
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.members import Members
from hair_pipeline.inputs.samples import Sample, load_sample
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.data import read_reliable_identities

TILE = 192
_GAP = 6
_QUALITY = 88


def style_grid(
    spec: str, settings: Settings, profile: Profile, out: Path, *, people: int = 8, styles: int = 4
) -> tuple[int, int]:
    """Draw the grid and write it as a JPEG.

    The first column shows the people, the first row the hair whose style is asked for.

    Args:
        spec: a model, as for `contenders.resolve`.
        people, styles: at most so many rows and columns.

    Returns:
        How many people and styles there are.

    Raises:
        PipelineError: `out` is not named .jpg, there are fewer than two held-out people with a face, or the model
            cannot be loaded.
    """
    if out.suffix.lower() not in (".jpg", ".jpeg"):
        raise PipelineError(f"cannot write {out.suffix or 'a file without suffix'}", file=out, remedy="name it .jpg")
    rows = _frontal(read_catalog(settings.catalog_path))
    if len(rows) < 2:
        raise PipelineError(
            "fewer than two held-out people with a face",
            file=settings.catalog_path,
            remedy="give more people, or a greater inputs.validation_fraction",
        )
    wearers = [_load(row, settings, profile) for row in rows.head(people).itertuples()]
    worn = [_load(row, settings, profile) for row in _different(rows, styles).itertuples()]
    members = Members.read(settings.catalog_path)
    identities = read_reliable_identities(settings.processed / "identity_embeddings", members)
    contender = resolve(spec, settings, profile)
    grid = [[np.full_like(_tile(worn[0].image), 255), *(_tile(_hair(style)) for style in worn)]]
    for wearer in wearers:
        identity = identities.get(wearer.image_id)
        known = None if identity is None else identity.numpy()
        cases = [make_case(wearer, style, known, (None, None), profile) for style in worn]
        drawn = contender.draw(cases)
        pictures = [drawing.final for drawing in drawn if isinstance(drawing, Drawing)]
        if len(pictures) < len(drawn):
            raise PipelineError(next(reason for reason in drawn if isinstance(reason, str)))
        grid.append([_tile(wearer.image), *map(_tile, pictures)])
    write_bytes(out, encode_image(_joined(grid), ".jpg", _QUALITY))
    return len(wearers), len(worn)


def _frontal(catalog: pd.DataFrame) -> pd.DataFrame:
    """One photo of each held-out person: the most frontal that Stage 2 can use; people whose face is sharp first."""
    rows = catalog[catalog.accepted & (catalog.split == "validation") & catalog.stage2.eq(True)]
    rows = rows.assign(turn=rows.yaw.abs(), blurred=~rows.identity_reliable.astype(bool))
    return rows.sort_values(["turn", "image_id"]).drop_duplicates("source").sort_values(["blurred", "image_id"])


def _different(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """So many rows, one of every curl and bangs class before a second of any."""
    turn = rows.groupby(["curl_class", "has_bangs"], dropna=False).cumcount()
    return rows.assign(turn=turn).sort_values(["turn", "curl_class", "has_bangs"]).head(count)


def _load(row: Any, settings: Settings, profile: Profile) -> Sample:
    return load_sample(row, settings, profile.processing.size)


def _hair(sample: Sample) -> np.ndarray:
    return np.where(sample.hair_mask[..., None], sample.image, np.uint8(235))


def _tile(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (TILE, TILE), interpolation=cv2.INTER_AREA)


def _joined(grid: list[list[np.ndarray]]) -> np.ndarray:
    height, width = len(grid) * (TILE + _GAP) - _GAP, len(grid[0]) * (TILE + _GAP) - _GAP
    canvas = np.full((height, width, 3), 255, np.uint8)
    for y, line in enumerate(grid):
        for x, tile in enumerate(line):
            canvas[y * (TILE + _GAP) :, x * (TILE + _GAP) :][:TILE, :TILE] = tile
    return canvas
