"""Small random frozen networks that the pixel losses look through."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torchvision

from hair_pipeline.models.perceptual import PerceptualNet, read_perceptual, save_stand_in
from hair_pipeline.models.recogniser import CROP, FaceRecogniser, SmallFaceNet
from hair_pipeline.models.style_classifier import StyleClassifier


@cache
def perceptual() -> PerceptualNet:
    with torch.random.fork_rng(devices=[]), TemporaryDirectory() as folder:
        torch.manual_seed(0)
        path = Path(folder) / "stand_in.safetensors"
        save_stand_in(torchvision.models.alexnet(weights=None).features.state_dict(), path)
        return read_perceptual(path, "alex", "stand-in alex", is_stand_in=True)


@cache
def recogniser() -> FaceRecogniser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SmallFaceNet(64)
        net(torch.randn(8, 3, CROP, CROP))
        return FaceRecogniser(net, 64, "small")


@cache
def classifier() -> StyleClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StyleClassifier("loss", width=8, resolution=64).eval().requires_grad_(False)


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random smooth-ish images in [-1, 1]: a coarse and a fine noise."""
    generator = torch.Generator().manual_seed(seed)
    *batch, height, width = shape
    coarse = torch.rand(*batch, height // 8, width // 8, generator=generator)
    coarse = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return coarse + torch.rand(shape, generator=generator) * 0.8 - 0.9
