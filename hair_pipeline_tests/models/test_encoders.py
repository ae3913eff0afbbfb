"""Patch encoder and style classifiers: shapes, independence of the batch, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hair_pipeline.errors import PipelineError
from hair_pipeline.models.patch_encoder import PatchEncoder, pool_style
from hair_pipeline.models.style_classifier import StyleClassifier


@pytest.mark.parametrize("architecture", ["resnet", "vit"])
def test_patch_encoder(architecture: str, tmp_path: Path) -> None:
    encoder = PatchEncoder(architecture, width=16, embedding_dim=32, input_size=64).eval()
    patches = torch.rand(5, 3, 128, 128)
    with torch.no_grad():
        vectors = encoder(patches)
        assert vectors.shape == (5, 32)
        assert torch.allclose(vectors.norm(dim=1), torch.ones(5), atol=1e-5)
        assert torch.allclose(encoder(patches[:1]), vectors[:1], atol=1e-5)
        assert torch.allclose(pool_style(vectors).norm(), torch.tensor(1.0))
        encoder.save(tmp_path / "encoder.pt")
        assert torch.equal(PatchEncoder.load(tmp_path / "encoder.pt")(patches), vectors)
    saved = torch.load(tmp_path / "encoder.pt", weights_only=True)
    assert saved["config"]["architecture"] == architecture


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_damaged_patch_encoder_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "encoder.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PipelineError, match=r"encoder\.pt"):
        PatchEncoder.load(path)


def test_other_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"format": "something else"}, path)
    with pytest.raises(PipelineError, match="patch encoder"):
        PatchEncoder.load(path)


@pytest.mark.parametrize("variant", ["loss", "evaluation"])
def test_style_classifier(variant: str, tmp_path: Path) -> None:
    classifier = StyleClassifier(variant, width=8, resolution=64).eval()
    images = (torch.rand(3, 3, 96, 96) * 2 - 1).requires_grad_()
    logits = classifier(images)
    assert logits["curl"].shape == (3, 3)
    assert logits["bangs"].shape == (3, 2)
    assert classifier.features(images).shape == (3, classifier.feature_dim)
    sum(value.square().sum() for value in logits.values()).backward()
    assert images.grad.abs().sum() > 0
    classifier.save(tmp_path / "loss.safetensors", {"accuracy": 0.5})
    again = StyleClassifier.load(tmp_path / "loss.safetensors")
    assert torch.equal(again(images)["curl"], logits["curl"])
    assert json.loads((tmp_path / "loss.json").read_text())["extra"] == {"accuracy": 0.5}


def test_the_two_classifiers_are_built_differently() -> None:
    kinds = [
        {type(module).__name__ for module in StyleClassifier(variant, 8, 64).trunk.modules()}
        for variant in ("loss", "evaluation")
    ]
    assert kinds[0] != kinds[1]


def test_missing_classifier_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="style classifier"):
        StyleClassifier.load(tmp_path / "loss.safetensors")
