"""Photos at training size, read through `inputs.samples` and kept in memory when there are few.

Belongs here: images and labels for the trainers that look at whole photos. Does not belong here: cached latents.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import UnreadableImage
from hair_pipeline.inputs.samples import Sample, load_sample
from hair_pipeline.settings import Settings
from hair_pipeline.training.images import BACKGROUND, to_tensor
from hair_pipeline.training.sampler import Draw, generator
from hair_pipeline.training.task import Batch
from hair_pipeline.vocabulary import COLOR, CURL_CLASSES

log = logging.getLogger(__name__)

PRELOAD_BYTES = 1 << 30
NO_LABEL = -100
"""Cross-entropy's ignore index: the image has no such label."""
COLORS = tuple(COLOR.values())
_DECODED_SHARE = 2 / 3


class PhotoStore:
    """Samples of catalog rows at one size.

    Attributes:
        rows: the catalog rows whose photos can be read, in order.

    Args:
        rows: accepted catalog rows.
        settings: where the inputs stand.
        side: pixels.

    Raises:
        PipelineError: none of the photos can be read.
    """

    def __init__(self, rows: pd.DataFrame, settings: Settings, side: int) -> None:
        self.settings = settings
        self.side = side
        items = list(rows.itertuples())
        self._samples: list[Sample] | None = None
        if len(items) * side * side * 5 <= PRELOAD_BYTES:
            with ThreadPoolExecutor(4) as pool:
                bar = tqdm(pool.map(self._load, items), total=len(items), desc="photos", unit="image", mininterval=1.0)
                samples = list(bar)
            good = [i for i, sample in enumerate(samples) if sample is not None]
            self._samples = [samples[i] for i in good]  # type: ignore[misc]
            items = [items[i] for i in good]
            rows = rows.iloc[good]
        if not items:
            raise PipelineError(
                "there is no readable photo to train on",
                file=settings.k_hairstyle_root,
                remedy="check the catalog's reasons and the inputs' folders",
            )
        self.rows = rows.reset_index(drop=True)
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        if self._samples is not None:
            return self._samples[index]
        for offset in range(len(self._items)):  # a photo that went bad since the catalog gives way to the next
            sample = self._load(self._items[(index + offset) % len(self._items)])
            if sample is not None:
                return sample
        raise PipelineError(
            "no photo can be read any more", file=self.settings.k_hairstyle_root, remedy="check the disk"
        )

    def _load(self, item: Any) -> Sample | None:
        try:
            return load_sample(item, self.settings, self.side)
        except UnreadableImage as error:
            log.warning("%s left out: %s", item.image_id, error)
            return None


def split_rows(catalog: pd.DataFrame, split: str) -> pd.DataFrame:
    """The accepted rows of a split, ordered by image id."""
    return catalog[catalog.accepted & (catalog.split == split)].sort_values("image_id").reset_index(drop=True)


def hair_only(sample: Sample, background: int = BACKGROUND) -> np.ndarray:
    """The photo with everything but the hair replaced by mid-gray. (S, S, 3) uint8."""
    return np.where(sample.hair_mask[..., None], sample.image, np.uint8(background))


def augment(
    image: np.ndarray, chance: torch.Generator, *, degrees: float = 8.0, jitter: float = 0.2, flip: bool = True
) -> np.ndarray:
    """Random flip, small rotation and scale, and brightness, contrast and saturation jitter; uint8 in and out.

    With `degrees` 0 the image is shifted by whole pixels instead of turned and scaled: interpolation would blur strands
    of hair, and with them what tells straight from wavy.
    """
    u = torch.rand(6, generator=chance).tolist()
    if flip and u[0] < 0.5:
        image = np.ascontiguousarray(image[:, ::-1])
    height, width = image.shape[:2]
    if degrees:
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), (2 * u[1] - 1) * degrees, 1 + 0.1 * (2 * u[2] - 1))
    else:
        dx, dy = round((2 * u[1] - 1) * width / 20), round((2 * u[2] - 1) * height / 20)
        turn = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    image = cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    contrast, brightness, saturation = (1 + jitter * (2 * v - 1) for v in u[3:])
    pixels = image.astype(np.float32)
    mean = pixels.mean()
    pixels = (pixels - mean) * contrast + mean * brightness
    gray = pixels.mean(2, keepdims=True)
    pixels = gray + (pixels - gray) * saturation
    return np.clip(pixels, 0, 255).astype(np.uint8)


class LabelledImages(Dataset[Batch]):
    """Photos and hair-only images with their labels: image (3, S, S) in [-1, 1]; curl, bangs, color: class or -100.

    Bangs are labelled only where a face is seen: on the back of a head nobody can tell.

    Args:
        store: the photos.
        seed: of the augmentation.
        train: random choice of photo or hair-only and augmentation; otherwise even indices of a doubled list are
            photos and odd ones hair-only, unchanged.
        decoded: photos by index as the base's VAE gives them back (`training.decoded`): in training taken two times
            out of three, otherwise always where there is one.
        decoded_from: training samples before this position are photos only.
    """

    def __init__(
        self,
        store: PhotoStore,
        seed: int,
        *,
        train: bool,
        decoded: Mapping[int, np.ndarray] | None = None,
        decoded_from: int = 0,
    ) -> None:
        self.store = store
        self.seed = seed
        self.train = train
        self.decoded = decoded or {}
        self.decoded_from = decoded_from
        rows = store.rows
        bangs = rows.has_bangs.where(rows.has_face.astype(bool))
        self.labels = {
            "curl": torch.tensor([_place(value, CURL_CLASSES) for value in rows.curl_class]),
            "bangs": torch.tensor([NO_LABEL if pd.isna(value) else int(bool(value)) for value in bangs]),
            "color": torch.tensor([_place(value, COLORS) for value in rows.color]),
        }

    def __len__(self) -> int:
        return len(self.store) if self.train else 2 * len(self.store)

    def __getitem__(self, draw: Draw) -> Batch:
        chance = generator(self.seed, 4, draw.position)
        index = draw.index if self.train else draw.index // 2
        only_hair = bool(torch.rand((), generator=chance) < 0.5) if self.train else draw.index % 2 == 1
        sample = self.store[index]
        if index in self.decoded and (not self.train or self._takes_decoded(draw, chance)):
            sample = replace(sample, image=self.decoded[index])
        image = hair_only(sample) if only_hair else sample.image
        if self.train:
            image = augment(image, chance, degrees=0)
        labels = {name: values[index] for name, values in self.labels.items()}
        return {"image": to_tensor(image), "hair_only": torch.tensor(only_hair)} | labels

    def _takes_decoded(self, draw: Draw, chance: torch.Generator) -> bool:
        return draw.position >= self.decoded_from and bool(torch.rand((), generator=chance) < _DECODED_SHARE)

    def class_weights(self, name: str, classes: int) -> Tensor:
        """Inverse square root of the class frequencies, mean 1 over the classes that occur."""
        known = self.labels[name][self.labels[name] >= 0]
        counts = torch.bincount(known, minlength=classes).float()
        weights = torch.where(counts > 0, counts.clamp(min=1).rsqrt(), torch.zeros(()))
        return weights / weights[counts > 0].mean() if bool((counts > 0).any()) else torch.ones(classes)


def masked_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor | None:
    """Cross-entropy over the labelled samples of a batch, or None when there is none (the mean would be NaN)."""
    known = labels >= 0
    if not bool(known.any()):
        return None
    return torch.nn.functional.cross_entropy(logits[known], labels[known], weight=weights)


def in_batches(dataset: Dataset[Batch], size: int, collate: Callable[[list[Batch]], Batch], batch: int = 64) -> Any:
    """A data set's samples in order, as batches."""
    for start in range(0, size, batch):
        yield collate([dataset[Draw(i, i)] for i in range(start, min(size, start + batch))])


def _place(value: Any, classes: tuple[str, ...]) -> int:
    return classes.index(value) if isinstance(value, str) and value in classes else NO_LABEL
