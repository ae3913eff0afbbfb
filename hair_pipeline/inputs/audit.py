"""The split audited: pictures that stand on both sides, and people who may stand under two names.

Belongs here: looking for what a split by `source` cannot see. Does not belong here: the split (`split`), and what
a finding means for a run (`orchestration.checks`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.perceptual_hash import as_words, near_pairs
from hair_pipeline.inputs.reasons import IdentityReason
from hair_pipeline.inputs.training_face import EMBEDDING_DIM, read_embedding
from hair_pipeline.profile import InputsConfig
from hair_pipeline.settings import Settings

EMBEDDINGS_PER_PERSON = 5
"""At most this many embeddings, of the most confident faces, make a person's mean embedding."""
_BLOCK = 1024


@dataclass(frozen=True)
class NearDuplicates:
    """Pictures of held-out people that (nearly) equal pictures of people trained on.

    Attributes:
        train, validation: images compared.
        pairs: columns validation_image, validation_person, train_image, train_person, distance (bits of 256); for
            each image of validation its nearest, the nearest first.
    """

    train: int
    validation: int
    pairs: pd.DataFrame


@dataclass(frozen=True)
class EqualIdentities:
    """Pairs of people whose mean embeddings are so near that they may be one person.

    Attributes:
        people: compared, per embedding model.
        pairs: columns person, other, model, cosine, across_split; those across the split first, then the nearest.
    """

    people: dict[str, int]
    pairs: pd.DataFrame


def near_duplicates(settings: Settings, config: InputsConfig) -> NearDuplicates:
    """Compare every accepted image of validation with every one of train by perceptual hash.

    Raises:
        PipelineError: there is no catalog.
    """
    columns = ["image_id", "source", "split", "accepted", "perceptual_hash"]
    frame = read_catalog(settings.catalog_path, columns=columns)
    frame = frame[frame.accepted & frame.perceptual_hash.notna()]
    train, validation = (_by_hash(frame[frame.split == side]) for side in ("train", "validation"))
    row, column, distance = near_pairs(
        as_words(validation.index.tolist()), as_words(train.index.tolist()), config.near_duplicate_distance
    )
    found = pd.DataFrame({"row": row, "column": column, "distance": distance.astype(int)})
    found = found.sort_values(["distance", "row", "column"]).drop_duplicates("row")
    nearest = validation.iloc[found.row].reset_index(drop=True), train.iloc[found.column].reset_index(drop=True)
    pairs = pd.DataFrame(
        {
            "validation_image": nearest[0].image_id,
            "validation_person": nearest[0].source,
            "train_image": nearest[1].image_id,
            "train_person": nearest[1].source,
            "distance": found.distance.to_numpy(),
        }
    ).explode(["validation_image", "validation_person"], ignore_index=True)
    counts = frame.split.value_counts()
    return NearDuplicates(int(counts.get("train", 0)), int(counts.get("validation", 0)), pairs)


def _by_hash(frame: pd.DataFrame) -> pd.DataFrame:
    """Distinct hashes (index); `image_id` and `source` list all who bear one, sorted by image."""
    ordered = frame.sort_values("image_id")
    return ordered.groupby("perceptual_hash", sort=True)[["image_id", "source"]].agg(list)


def equal_identities(settings: Settings, config: InputsConfig) -> EqualIdentities:
    """Compare the mean embeddings of all people, within each embedding model: the two models' spaces differ.

    Blurred faces and damaged embeddings take no part.

    Raises:
        PipelineError: there is no catalog.
    """
    columns = ["source", "split", "accepted", "embedding_path", "embedding_model", "face_confidence", "identity_reason"]
    frame = read_catalog(settings.catalog_path, columns=columns)
    sound = frame.identity_reason.isna() | frame.identity_reason.isin(
        [IdentityReason.OTHER_MODEL, IdentityReason.LARGE_YAW]
    )
    frame = frame[frame.accepted & sound & frame.embedding_path.notna() & frame.embedding_model.notna()]
    splits = frame.groupby("source").split.first()
    people: dict[str, int] = {}
    found: list[pd.DataFrame] = []
    for model, part in frame.groupby("embedding_model"):
        best = part.sort_values(["face_confidence", "embedding_path"], ascending=[False, True])
        names, means = _means(settings.training_face_root, best.groupby("source").head(EMBEDDINGS_PER_PERSON))
        people[str(model)] = len(names)
        found.append(_pairs_above(names, means, config.same_identity_cosine).assign(model=str(model)))
    pairs = pd.concat(found) if found else pd.DataFrame(columns=["person", "other", "cosine", "model"])
    across = [splits[person] != splits[other] for person, other in zip(pairs.person, pairs.other, strict=True)]
    pairs = pairs.assign(across_split=np.array(across, bool))
    pairs = pairs.sort_values(["across_split", "cosine"], ascending=False, ignore_index=True)
    return EqualIdentities(people, pairs[["person", "other", "model", "cosine", "across_split"]])


def _means(root: Path, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """People's names (N,) and the unit mean of their embeddings (N, 512) float32."""
    sums: dict[str, np.ndarray] = {}
    for person, path in zip(frame.source, frame.embedding_path, strict=True):
        vector = read_embedding(root, path)
        if vector is not None:
            sums[person] = sums.get(person, np.zeros_like(vector)) + vector
    names = np.array(sorted(sums), dtype=object)
    if not len(names):
        return names, np.empty((0, EMBEDDING_DIM), np.float32)
    stacked = np.stack([sums[name] for name in names])
    return names, stacked / np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-9)


def _pairs_above(names: np.ndarray, means: np.ndarray, cosine: float) -> pd.DataFrame:
    """Pairs of people whose cosine reaches the limit, by blocks of the matrix product."""
    parts: list[pd.DataFrame] = [pd.DataFrame({"person": [], "other": [], "cosine": []})]
    for start in range(0, len(names), _BLOCK):
        similar = means[start : start + _BLOCK] @ means.T
        row, column = np.nonzero(similar >= cosine)
        later = column > row + start
        row, column = row[later], column[later]
        parts.append(
            pd.DataFrame(
                {"person": names[row + start], "other": names[column], "cosine": similar[row, column].round(4)}
            )
        )
    return pd.concat([part for part in parts if len(part)] or parts[:1])
