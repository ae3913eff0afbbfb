"""Samples of the two stages: cached latents joined with style vectors and identity embeddings.

Belongs here: what one training sample of Stage 1 and Stage 2 holds, and every random choice in it. Does not belong
here: the order of samples (`sampler`) and what is done with them (`stages`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hair_pipeline.errors import PipelineError
from hair_pipeline.inputs.members import Members
from hair_pipeline.inputs.training_face import EMBEDDING_DIM
from hair_pipeline.profile import StageConfig
from hair_pipeline.training.latent_store import LatentStore, unpack_mask
from hair_pipeline.training.sampler import Draw, generator
from hair_pipeline.training.task import Batch
from hair_pipeline.vocabulary import CURL_CLASSES

UNKNOWN = -1
SOURCE_VERSION = b"source_version"
"""Metadata of a table of vectors: the content version of the network that they are from."""
_GOLDEN = 0.6180339887498949


class VectorTable:
    """Vectors by image id, from the shards' Parquet files.

    Attributes:
        ids: image ids in order.
        vectors: (N, D) float32.
        people: the person of each row.
    """

    def __init__(self, ids: Sequence[str], people: Sequence[str], vectors: np.ndarray) -> None:
        self.ids = list(ids)
        self.people = list(people)
        self.vectors = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
        self._row = {image_id: row for row, image_id in enumerate(self.ids)}
        self._views: dict[str, list[int]] = {}
        for row, person in enumerate(self.people):
            self._views.setdefault(person, []).append(row)

    @property
    def dim(self) -> int:
        """D, or 0 when there is no vector at all."""
        return int(self.vectors.shape[1])

    def get(self, image_id: str) -> Tensor | None:
        """The vector of an image, or None."""
        row = self._row.get(image_id)
        return None if row is None else self.vectors[row]

    def any_view(self, person: str, draw: torch.Generator) -> Tensor | None:
        """The vector of a random image of the person, or None when none has one."""
        rows = self._views.get(person)
        if not rows:
            return None
        return self.vectors[rows[int(torch.randint(len(rows), (), generator=draw))]]


def read_style_vectors(folder: Path, members: Members) -> VectorTable:
    """The table of `processed/style_vectors`, of the catalog's images.

    Raises:
        PipelineError: shards have vectors of different networks.
    """
    return _read_vectors(folder, members, "vector", reliable_only=False)


def read_reliable_identities(folder: Path, members: Members) -> VectorTable:
    """The table of `processed/identity_embeddings`, of the catalog's images, only those marked reliable.

    Raises:
        PipelineError: shards have vectors of different networks.
    """
    return _read_vectors(folder, members, "embedding", reliable_only=True)


def face_lock(sample: Batch) -> Tensor:
    """Latent cells (..., 1, h, w) bool that are face throughout and not repainted: they stay as they are."""
    return (sample["face"] >= 1) & (sample["mask"] < 0.5)


def _read_vectors(folder: Path, members: Members, column: str, *, reliable_only: bool) -> VectorTable:
    ids: list[str] = []
    people: list[str] = []
    blocks: list[np.ndarray] = []
    kinds: list[tuple[int, bytes | None]] = []
    for path in members.tables(folder):
        table = pq.read_table(path, columns=["image_id", column] + (["reliable"] if reliable_only else []))
        if reliable_only:
            table = table.filter(table["reliable"])
        rows = members.among(table.to_pandas(), path.stem)
        if rows.empty:
            continue
        ids += rows.image_id.tolist()
        people += rows.person.tolist()
        blocks.append(np.stack(rows[column].to_list()).astype(np.float32))
        kinds.append((blocks[-1].shape[1], (table.schema.metadata or {}).get(SOURCE_VERSION)))
        if kinds[-1] != kinds[0]:
            raise PipelineError(
                "holds vectors of another network than the shards before it",
                file=path,
                remedy=f"materialise {folder.name} again, for all shards",
            )
    return VectorTable(ids, people, np.concatenate(blocks) if blocks else np.zeros((0, 0), np.float32))


@dataclass(frozen=True)
class StageSources:
    """What the samples of a stage are joined from; `labels` holds (curl, bangs) classes by image id, -1 unknown."""

    latents: LatentStore
    styles: VectorTable
    identities: VectorTable
    labels: dict[str, tuple[int, int]]


LABEL_COLUMNS = ("accepted", "image_id", "curl_class", "has_bangs", "has_face")
"""Of the catalog, as `read_labels` wants them."""


def read_labels(catalog: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Curl class and bangs class of every accepted image, -1 where unknown; bangs only where a face is seen."""
    labels: dict[str, tuple[int, int]] = {}
    rows: list[Any] = list(catalog[catalog.accepted].itertuples())
    for row in rows:
        curl = CURL_CLASSES.index(row.curl_class) if row.curl_class in CURL_CLASSES else UNKNOWN
        bangs = UNKNOWN if pd.isna(row.has_bangs) or not row.has_face else int(bool(row.has_bangs))
        labels[row.image_id] = (curl, bangs)
    return labels


class StageDataset(Dataset[Batch]):
    """Samples of Stage 1 (hair-only images and patches) or Stage 2 (photos).

    A sample is a dict of tensors (latents h x w, pixels at `resolution`):
        latents (C, h, w) what to regenerate (in the locked face: those of the bald image);
        masked_latents (C, h, w) the bald image, or an empty one in Stage 1;
        mask (1, h, w) 1 = repaint; hair (1, h, w) share of hair; face (1, h, w) share of face;
        hair_pixels (1, H, W); box (4,) face box in pixels, zero when there is none;
        style (S,), style_present; identity (512,), identity_present; reliable: the identity loss may be used;
        curl, bangs: the wanted classes for the style loss, -1 where unknown, where there is no style, and for patches;
        noise (C, h, w), t: the diffusion step's random numbers;
        turn: the draw's, which says when there are pixel losses.

    Args:
        sources: the tables.
        rows: which samples, rows of the latents' index.
        config: the stage's values.
        train: random style view, mask variant and condition dropout; otherwise own style, variant 0, no dropout,
            and timesteps spread evenly over the samples.
        timesteps: number of timesteps of the noise schedule.
        style_dim: S, length of the style vectors (of zeros where no image has any).
    """

    def __init__(
        self,
        sources: StageSources,
        rows: pd.DataFrame,
        config: StageConfig,
        *,
        train: bool,
        timesteps: int,
        style_dim: int,
    ) -> None:
        self.sources = sources
        self.config = config
        self.train = train
        self.timesteps = timesteps
        self.style_dim = style_dim
        self._rows = list(zip(rows.shard, rows.kind, rows.row.astype(int), rows.image_id, rows.person, strict=True))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, draw: Draw) -> Batch:
        shard, kind, row, image_id, person = self._rows[draw.index]
        chance = generator(self.config.seed, 2, draw.position)
        sample = self._tensors(shard, kind, row, chance)
        side = sample.pop("_side")
        sample["hair_pixels"] = (
            unpack_mask(sample["hair_pixels"], side) if kind != "patch" else torch.ones(1, side, side)
        )

        style = self._style(image_id, person, chance)
        identity = self.sources.identities.get(image_id) if kind == "photo" else None
        keep_style, keep_identity = self._dropout(chance)
        styled = keep_style and style is not None
        # null tokens must not be drawn to labels; and the classifier, which knows whole heads, guesses on patches
        judged = styled and kind != "patch"
        curl, bangs = self.sources.labels.get(image_id, (UNKNOWN, UNKNOWN)) if judged else (UNKNOWN, UNKNOWN)
        sample |= {
            "style": torch.zeros(self.style_dim) if style is None else style,
            "style_present": torch.tensor(styled),
            "identity": torch.zeros(EMBEDDING_DIM) if identity is None else identity,
            "identity_present": torch.tensor(identity is not None and keep_identity),
            "reliable": torch.tensor(identity is not None),
            "noise": torch.randn(sample["latents"].shape, generator=chance),
            "t": self._timestep(draw.position, chance),
            "curl": torch.tensor(curl),
            "bangs": torch.tensor(bangs),
            "turn": torch.tensor(draw.turn),
        }
        return sample

    def _tensors(self, shard: str, kind: str, row: int, chance: torch.Generator) -> Batch:
        read = self.sources.latents.read
        latents = read(shard, f"{kind}.latents", row).float()
        size = latents.shape[-2:]
        if kind == "patch":
            side = self.sources.latents.constant(shard, "patch.side").item()
            ones = torch.ones(1, *size)
            return {
                "latents": latents,
                "masked_latents": self.sources.latents.constant(shard, "patch.empty").float(),
                "mask": ones,
                "hair": ones,
                "face": torch.zeros(1, *size),
                "box": torch.zeros(4),
                "hair_pixels": torch.empty(0, dtype=torch.uint8),
                "_side": side,
            }
        hair = read(shard, f"{kind}.hair", row).float()[None] / 255
        common = {
            "latents": latents,
            "hair": hair,
            "hair_pixels": read(shard, f"{kind}.hair_pixels", row),
            "_side": self.sources.latents.constant(shard, f"{kind}.side").item(),
        }
        if kind == "hair_only":
            return common | {
                "masked_latents": self.sources.latents.constant(shard, "hair_only.empty").float(),
                "mask": (hair > 0).float(),
                "face": torch.zeros(1, *size),
                "box": torch.zeros(4),
            }
        bald = read(shard, "photo.bald", row).float()
        repaint = read(shard, "photo.repaint", row).float()
        variant = int(torch.randint(len(bald), (), generator=chance)) if self.train else 0
        sample = common | {
            "masked_latents": bald[variant],
            "mask": repaint[variant][None],
            "face": read(shard, "photo.face", row).float()[None] / 255,
            "box": read(shard, "photo.box", row).float(),
        }
        # The same pixels, encoded without hair around them: all that sampling knows of the face.
        return sample | {"latents": torch.where(face_lock(sample), bald[variant], latents)}

    def _style(self, image_id: str, person: str, chance: torch.Generator) -> Tensor | None:
        """The style vector of the image itself or, in training half of the time, of any view of the person."""
        own = self.sources.styles.get(image_id)
        other = self.train and bool(torch.rand((), generator=chance) < 0.5)
        if own is None or other:
            any_view = self.sources.styles.any_view(person, chance)
            return own if any_view is None else any_view
        return own

    def _dropout(self, chance: torch.Generator) -> tuple[bool, bool]:
        """Whether the style and the identity are kept."""
        if not self.train:
            return True, True
        u = float(torch.rand((), generator=chance))
        both, style = self.config.drop_both, self.config.drop_style
        if u < both:
            return False, False
        if u < both + style:
            return False, True
        return True, not u < both + style + self.config.drop_identity

    def _timestep(self, position: int, chance: torch.Generator) -> Tensor:
        """Uniform over the schedule, and evenly spread over neighbouring positions (golden-ratio sequence)."""
        share = (position * _GOLDEN + (float(torch.rand((), generator=chance)) / 8 if self.train else 0.0)) % 1
        return torch.tensor(min(int(share * self.timesteps), self.timesteps - 1))
