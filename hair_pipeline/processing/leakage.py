"""How much of the old hairstyle a bald image gives away: a small probe that tries to read it.

Belongs here: the probe, its pictures and its score. Does not belong here: the models' own leakage (`evaluation`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import pandas as pd

from hair_pipeline.files import UnreadableImage, find_image, hash_bytes, read_image, read_json, write_json
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.members import shard_files
from hair_pipeline.inputs.samples import Sample, load_sample
from hair_pipeline.processing.bald import make_bald, repaint_mask
from hair_pipeline.profile import BaldConfig, ProcessingConfig
from hair_pipeline.settings import Settings

TARGETS: Mapping[str, str] = {"length": "length", "fringe": "has_bangs", "curl": "curl_class"}
"""What the probe is to tell -> catalog column."""
MARGIN = 0.1
"""Accuracy above chance that is let pass: less shows hardly anything of a hairstyle."""
MAX_IMAGES = 600
MIN_PEOPLE = 10
"""Fewer people, of all classes together, measure nothing."""
MIN_PEOPLE_PER_CLASS = 3
FOLDS = 5
RESAMPLES = 500
_COLUMNS = (
    *("image_id", "source", "shard", "image_path", "label_path", "sheet_path", "width", "height", "mask_origin"),
    *("stage2", "has_face", "box_x1", "box_y1", "box_x2", "box_y2", "accepted", *TARGETS.values()),
)


@dataclass(frozen=True)
class Score:
    """How well the probe tells one attribute.

    Attributes:
        accuracy: balanced over the classes, on people it was not trained on; low, high: 95% interval, resampled by
            person.
        chance: 1 / number of classes.
        people, images: it rests on.
    """

    accuracy: float
    low: float
    high: float
    chance: float
    people: int
    images: int


@dataclass(frozen=True)
class Leakage:
    """Target -> score, from the bald image with the mask kept from the probe, and from the mask alone."""

    bald: dict[str, Score]
    mask: dict[str, Score]

    def telling(self) -> list[str]:
        """Targets that the bald image gives away: read more often than by chance, surely and by more than `MARGIN`."""
        return [target for target, score in self.bald.items() if score.low > score.chance + MARGIN]


def stored_leakage(settings: Settings, config: ProcessingConfig) -> Leakage:
    """Measure the bald images on disk, at most `MAX_IMAGES`, spread over people and shards; of few people nothing.

    The result is kept beside them (`bald_leakage.json`) until images, labels or settings change.
    """
    rows = choose_rows(settings)
    if rows.source.nunique() < MIN_PEOPLE:
        return Leakage({}, {})
    manifests = shard_files(settings.processed / "bald_images", sorted(rows.shard.unique()), ".json")
    fingerprint = hash_bytes(rows.to_csv(), config.model_dump_json(), *(path.read_bytes() for path in manifests))
    path = settings.processed / "bald_leakage.json"
    known = read_json(path) if path.exists() else {}
    if known.get("fingerprint") != fingerprint:
        measured = _measure_stored(rows, settings, config)
        known = {"fingerprint": fingerprint, **asdict(measured)}
        write_json(path, known)
    return Leakage(*({name: Score(**score) for name, score in known[key].items()} for key in ("bald", "mask")))


def _measure_stored(rows: pd.DataFrame, settings: Settings, config: ProcessingConfig) -> Leakage:
    balds, masks, kept = [], [], []
    for row in rows.itertuples():
        try:
            sample = load_sample(row, settings, config.size)
            balds.append(bald_features(_stored(row, settings)))
        except UnreadableImage:
            continue
        masks.append(mask_features(repaint_mask(sample.hair_mask, sample.face_mask, config.bald, box=sample.box)))
        kept.append(row.Index)
    return _score_both(balds, masks, rows.loc[kept])


def _stored(row: Any, settings: Settings) -> np.ndarray:
    folder = settings.processed / "bald_images" / row.shard
    return read_image(find_image(folder, row.image_id) or folder / row.image_id)


def measure(rows: pd.DataFrame, samples: list[Sample], config: BaldConfig) -> Leakage:
    """Measure a way of removing hair on loaded samples, one per row."""
    balds, masks = [], []
    for sample in samples:
        shape = sample.hair_mask, sample.face_mask
        bald, repaint = make_bald(sample.image, *shape, config, box=sample.box, window=sample.window)
        balds.append(bald_features(bald))
        masks.append(mask_features(repaint))
    return _score_both(balds, masks, rows)


def choose_rows(settings: Settings, images: int = MAX_IMAGES) -> pd.DataFrame:
    """Front and side views with a face (Stage 2's), spread over the people; the same ones every time.

    Of more people than images a hash of the name chooses: names and numbers go by place and time of the photos.
    """
    rows = read_catalog(settings.catalog_path, columns=list(_COLUMNS))
    rows = rows[rows.accepted & rows.stage2].sort_values("image_id")
    people = sorted(rows.source.unique(), key=hash_bytes)[:images]
    rows = rows[rows.source.isin(people)]
    return rows.groupby("source", sort=True).head(max(1, images // max(1, len(people))))


def bald_features(image: np.ndarray) -> np.ndarray:
    """Colours at 24 x 24 and gradient directions at 96 x 96 of an RGB image; (N,) float32."""
    colors = cv2.resize(image, (24, 24), interpolation=cv2.INTER_AREA).astype(np.float32).ravel() / 255
    gray = cv2.cvtColor(cv2.resize(image, (96, 96), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY).astype(
        np.float32
    )
    return np.concatenate([colors, _gradients(gray)])


def mask_features(mask: np.ndarray) -> np.ndarray:
    """Coverage of a mask at 32 x 32; (1024,) float32."""
    return cv2.resize(mask.astype(np.float32), (32, 32), interpolation=cv2.INTER_AREA).ravel()


def _gradients(gray: np.ndarray, cell: int = 12, directions: int = 8) -> np.ndarray:
    """Histograms of gradient directions per cell, weighted by strength (Dalal and Triggs, 2005, without blocks)."""
    x, y = cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1)
    strength, angle = np.hypot(x, y), np.arctan2(y, x) % np.pi
    bins = np.minimum((angle / np.pi * directions).astype(int), directions - 1)
    layers = [np.where(bins == number, strength, 0).astype(np.float32) for number in range(directions)]
    cells = gray.shape[1] // cell, gray.shape[0] // cell
    sums = np.stack([cv2.resize(layer, cells, interpolation=cv2.INTER_AREA) for layer in layers])
    return np.log1p(sums).ravel()


def _score_both(balds: list[np.ndarray], masks: list[np.ndarray], rows: pd.DataFrame) -> Leakage:
    scores: tuple[dict[str, Score], dict[str, Score]] = ({}, {})
    for target, column in TARGETS.items():
        for features, found in zip((balds, masks), scores, strict=True):
            score = probe(np.array(features), rows[column].to_numpy(object), rows.source.to_numpy(object))
            if score is not None:
                found[target] = score
    return Leakage(*scores)


def probe(features: np.ndarray, labels: np.ndarray, people: np.ndarray) -> Score | None:
    """Train a linear probe on some people and try it on others, each in turn.

    Args:
        features: (N, F). labels: (N,) of any values, None for unknown. people: (N,) names.

    Returns:
        None where there are too few people or only one class: classes of fewer than `MIN_PEOPLE_PER_CLASS` people are
        left out.
    """
    known = _usable(labels, people)
    features, labels, people = features[known], labels[known].astype(str), people[known]
    if len(set(people)) < MIN_PEOPLE or len(set(labels)) < 2:
        return None
    right = _predictions(features, labels, people) == labels
    low, high = np.percentile(list(_resampled(right, labels, people)), [2.5, 97.5])
    accuracy = _balanced(right, labels)
    return Score(accuracy, float(low), float(high), 1 / len(set(labels)), len(set(people)), len(labels))


def _usable(labels: np.ndarray, people: np.ndarray) -> np.ndarray:
    """Places of known labels that enough people have."""
    frame = pd.DataFrame({"label": labels, "person": people}).dropna()
    enough = frame.groupby("label").person.nunique() >= MIN_PEOPLE_PER_CLASS
    return frame.index[frame.label.isin(enough.index[enough])].to_numpy()


def _predictions(features: np.ndarray, labels: np.ndarray, people: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    components = min(48, len(labels) // 2, features.shape[1])
    model = make_pipeline(
        StandardScaler(),
        PCA(components, random_state=0),
        LogisticRegression(C=0.05, class_weight="balanced", max_iter=500),
    )
    return np.asarray(cross_val_predict(model, features, labels, groups=people, cv=folds))


def _balanced(right: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes of the share that is right."""
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def _resampled(right: np.ndarray, labels: np.ndarray, people: np.ndarray) -> Iterator[float]:
    random = np.random.default_rng(0)
    names = np.unique(people)
    places = {name: np.flatnonzero(people == name) for name in names}
    for _ in range(RESAMPLES):
        chosen = np.concatenate([places[name] for name in random.choice(names, len(names))])
        yield _balanced(right[chosen], labels[chosen])
