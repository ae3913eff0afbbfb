"""The style projection learns to say the base's own words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hair_pipeline.models.attribute_tokens import ATTRIBUTES, AttributeTokens, attribute_classes
from hair_pipeline.models.style_projection import StyleProjection
from hair_pipeline.training.data import VectorTable
from hair_pipeline.training.style_start import start_from_prompts
from hair_pipeline.vocabulary import CURL_CLASSES


def labelled(count: int) -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "image_id": [f"image_{i}" for i in range(count)],
            "accepted": True,
            "split": ["validation" if i % 4 == 0 else "train" for i in range(count)],
            "curl_class": [CURL_CLASSES[i % 3] if i % 7 else None for i in range(count)],
            "has_bangs": [bool(i % 2) for i in range(count)],
            "has_face": [i % 5 != 0 for i in range(count)],
            "length": [ATTRIBUTES["length"][int(k)] for k in random.integers(5, size=count)],
            "color": "no such colour",
        }
    )


def test_unknown_classes_are_the_empty_prompt() -> None:
    rows = labelled(10)
    classes = attribute_classes(rows)
    assert classes[:, 3].tolist() == [-1] * 10
    assert (classes[~rows.has_face.to_numpy(), 1] == -1).all()
    tokens = AttributeTokens(8)(classes)
    assert tokens.shape == (10, 4, 8)
    assert (tokens[:, 3] == 0).all()
    assert (tokens[classes >= 0].norm(dim=-1) > 0).all()


def test_the_projection_tells_held_out_images_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows = labelled(120)
    AttributeTokens(16).save_pretrained(tmp_path / "attribute_tokens")
    classes = attribute_classes(rows)
    vectors = torch.randn(120, 12) * 0.1
    for i, (curl, bangs, *_) in enumerate(classes.tolist()):
        vectors[i, max(curl, 0)] += 1
        vectors[i, 4] += max(bangs, 0)
    styles = VectorTable(list(rows.image_id), ["person"] * 120, vectors.numpy())
    projection = StyleProjection(12, 16, tokens=4)
    projection.start_from(torch.zeros(1, 1, 16))
    accuracies = start_from_prompts(projection, tmp_path, styles, rows)
    assert accuracies["style_curl_class_accuracy"] > 0.9
    assert accuracies["style_has_bangs_accuracy"] > 0.9
    assert "style_color_accuracy" not in accuracies
    assert (projection.null == 0).all()


def test_a_base_without_attribute_tokens_changes_nothing(tmp_path: Path) -> None:
    projection = StyleProjection(12, 16, tokens=4)
    before = {name: value.clone() for name, value in projection.state_dict().items()}
    styles = VectorTable(["image_1"], ["person"], np.ones((1, 12), np.float32))
    assert start_from_prompts(projection, tmp_path, styles, labelled(4)) == {}
    assert all(torch.equal(value, before[name]) for name, value in projection.state_dict().items())
