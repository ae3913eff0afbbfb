"""Photos through the VAE: which, how many, kept in a file, and what data sets make of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hair_pipeline.models.base import tiny_base
from hair_pipeline.training import decoded
from hair_pipeline.training.photos import LabelledImages
from hair_pipeline.training.sampler import Draw
from hair_pipeline_tests.training.tiny_training import Trained

SIDE = 32


@dataclass(frozen=True)
class Photo:
    image: np.ndarray
    hair_mask: np.ndarray


class Store:
    """Photos in memory, as `PhotoStore` gives them."""

    def __init__(self, count: int) -> None:
        label = {"has_bangs": True, "has_face": True, "curl_class": "wavy", "color": "black"}
        self.rows = pd.DataFrame([label | {"image_id": f"photo {number}"} for number in range(count)])
        self.images = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
        self.read = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Photo:
        self.read += 1
        return Photo(self.images[index], np.ones((SIDE, SIDE), bool))


def photos(count: int) -> Any:
    return Store(count)


def test_a_subset_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "_MOST", 4)
    vae, store = tiny_base().vae, photos(10)
    found = decoded.decoded_photos(vae, store, tmp_path / "decoded.safetensors")
    assert sorted(found) == [0, 3, 6, 9]
    assert all(image.shape == (SIDE, SIDE, 3) and image.dtype == np.uint8 for image in found.values())
    assert store.read == 4
    again = decoded.decoded_photos(vae, store, tmp_path / "decoded.safetensors")
    assert store.read == 4
    assert all(np.array_equal(again[index], image) for index, image in found.items())


@pytest.mark.parametrize("most", [4, 100])
def test_what_was_kept_of_other_photos_is_not_taken(most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A photo that could not be read when the run began and can when it goes on moves all that follow."""
    monkeypatch.setattr(decoded, "_MOST", most)
    vae, all_of_them, without_first = tiny_base().vae, photos(10), photos(10)
    without_first.rows = without_first.rows.iloc[1:].reset_index(drop=True)
    without_first.images = without_first.images[1:]
    decoded.decoded_photos(vae, without_first, tmp_path / "decoded.safetensors")
    found = decoded.decoded_photos(vae, all_of_them, tmp_path / "decoded.safetensors")
    expected = decoded.decoded_photos(vae, all_of_them, tmp_path / "new.safetensors")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[index], image) for index, image in expected.items())


def test_training_takes_either_and_a_check_takes_the_decoded_one() -> None:
    store = photos(1)
    black = {0: np.zeros((SIDE, SIDE, 3), np.uint8)}
    check = LabelledImages(store, 0, train=False, decoded=black)
    assert float(check[Draw(0, 0)]["image"].max()) == -1
    train = LabelledImages(store, 0, train=True, decoded=black)
    shares = [float(sample["image"].max()) == -1 for k in range(64) if not (sample := train[Draw(0, k)])["hair_only"]]
    assert 0.4 < np.mean(shares) < 0.95
    later = LabelledImages(store, 0, train=True, decoded=black, decoded_from=64)
    assert all(float(later[Draw(0, k)]["image"].max()) > -1 for k in range(64))


def test_classifiers_are_measured_on_decoded_photos_too(trained: Trained) -> None:
    metrics = trained.results["style-classifier"].metrics
    for variant in ("evaluation", "loss"):
        assert {f"{variant}_curl_accuracy", f"{variant}_decoded_curl_accuracy"} <= metrics.keys()
