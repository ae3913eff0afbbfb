"""Identity embeddings gathered from training_face: read, checked, never recomputed.

Belongs here: a shard's embeddings as a table, and how alike they are. Does not belong here: reading of one `.npy`
(`inputs.training_face`) and face recognisers (`models`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa

from hair_pipeline.inputs.reader import read_if_there
from hair_pipeline.inputs.training_face import EMBEDDING_DIM, MAX_EMBEDDING_BYTES, parse_embedding
from hair_pipeline.settings import Settings

SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "person": pa.string(),
        "model": pa.string(),
        "reliable": pa.bool_(),
        "reason": pa.string(),
        "embedding": pa.list_(pa.float32(), EMBEDDING_DIM),
    }
)
"""`reason` says why an embedding is not reliable. Embeddings of different models must never be compared."""


@dataclass(frozen=True)
class Gathered:
    """A shard's embeddings.

    Attributes:
        rows: of `SCHEMA`, in catalog order.
        skipped: reason -> ids of images without a sound embedding.
        failed: image id -> why its embedding, which is there, could not be read.
    """

    rows: list[dict[str, Any]]
    skipped: dict[str, list[str]]
    failed: dict[str, str]

    def table(self) -> pa.Table:
        """As an Arrow table of `SCHEMA`."""
        return pa.Table.from_pylist(self.rows, schema=SCHEMA)

    def similarities(self) -> tuple[list[str], np.ndarray]:
        """Persons and cosines (N, N) of the reliable embeddings, sorted by person."""
        reliable = sorted(
            (row for row in self.rows if row["reliable"]), key=lambda row: (row["person"], row["image_id"])
        )
        if not reliable:
            return [], np.zeros((0, 0), np.float32)
        vectors = np.stack([row["embedding"] for row in reliable])
        return [row["person"] for row in reliable], vectors @ vectors.T


def gather(catalog: pd.DataFrame, settings: Settings) -> Gathered:
    """Read the embeddings of a shard's accepted images."""
    rows: list[dict[str, Any]] = []
    skipped: dict[str, list[str]] = {}
    failed: dict[str, str] = {}
    for row in catalog.itertuples():
        try:
            path = str(row.embedding_path)
            data = read_if_there(settings.training_face_root, path, MAX_EMBEDDING_BYTES) if row.has_face else None
        except OSError as error:
            failed[str(row.image_id)] = f"{row.embedding_path} cannot be read ({error.strerror})"
            continue
        vector = None if data is None else parse_embedding(data)
        if vector is None:
            reason = str(row.identity_reason or "bad_embedding")
            skipped.setdefault(reason, []).append(str(row.image_id))
            continue
        rows.append(
            {
                "image_id": row.image_id,
                "person": row.source,
                "model": row.embedding_model,
                "reliable": bool(row.identity_reliable),
                "reason": row.identity_reason,
                "embedding": vector,
            }
        )
    return Gathered(rows, dict(sorted(skipped.items())), failed)


def agreement(persons: list[str], cosines: np.ndarray) -> dict[str, float]:
    """Mean cosine between images of one person and between persons; a key is absent where there is no pair."""
    codes = pd.factorize(np.array(persons, object))[0]
    same = codes[:, None] == codes
    off_diagonal = ~np.eye(len(persons), dtype=bool)
    pairs = {"same_person_cosine": same & off_diagonal, "other_person_cosine": ~same}
    return {name: round(float(cosines[which].mean()), 4) for name, which in pairs.items() if which.any()}


def picture(cosines: np.ndarray, side: int = 240) -> np.ndarray | None:
    """The cosine matrix as a picture (blocks of one person bright), (side, side, 3) uint8 RGB."""
    if not cosines.size:
        return None
    gray = np.clip(cosines * 255, 0, 255).astype(np.uint8)
    colored = cv2.applyColorMap(gray, cv2.COLORMAP_VIRIDIS)
    return cv2.resize(colored, (side, side), interpolation=cv2.INTER_NEAREST)[..., ::-1].copy()
