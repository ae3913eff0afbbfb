"""Metrics seen through a frozen judge network: identity, hair-region LPIPS, texture class.

Belongs here: one number per image from a judge that is passed in. Does not belong here: choosing and loading the
judge (`evaluation.judges`) and distances between sets (`distribution`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hair_pipeline.evaluation.regions import mask_crop, masked_crop

MIN_HAIR_PIXELS = 64
LPIPS_SIDE = 256
"""Hair crops are compared at this side, so that numbers of different photo sizes can be compared."""


class Recogniser(Protocol):
    """(B, 3, H, W) in [-1, 1] and boxes (B, 4) in pixels -> unit vectors (B, D)."""

    def embed(self, images: Tensor, boxes: Tensor) -> Tensor: ...


class Perceptual(Protocol):
    """Distance of two batches (B, 3, H, W) in [-1, 1] within masks (B, 1, H, W) -> (B,)."""

    def distance(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor: ...


class Classifier(Protocol):
    """(B, 3, H, W) in [-1, 1] -> {"curl": (B, 3), "bangs": (B, 2)} logits."""

    def __call__(self, images: Tensor) -> dict[str, Tensor]: ...


def to_tensor(images: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """uint8 RGB images (H, W, 3) of one size -> float32 (B, 3, H, W) in [-1, 1]."""
    stack = torch.from_numpy(np.stack(images)).to(device)
    return stack.permute(0, 3, 1, 2).float().div(127.5).sub(1)


@torch.no_grad()
def face_embeddings(
    recogniser: Recogniser, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray], device: torch.device
) -> np.ndarray:
    """Unit vectors (B, D) float64 of the faces in the boxes (4,) x1, y1, x2, y2 of uint8 RGB images (H, W, 3)."""
    frames = torch.from_numpy(np.stack(boxes)).float().to(device)
    vectors: np.ndarray = recogniser.embed(to_tensor(images, device), frames).double().cpu().numpy()
    return vectors


def identity_similarity(original: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Cosine between a recogniser's embeddings of originals and outputs, both aligned by the original's face box.

    Unit: cosine, -1 to 1. Direction: higher is better; the specification asks for at least 0.70. Source: ArcFace
    (Deng et al. 2019). For reliable faces only, and never between embeddings of two recognisers.

    Args:
        original, output: (B, D) of `face_embeddings`.

    Returns:
        (B,) float64; NaN where the recogniser returned no finite vector, or a zero one.
    """
    norms = np.linalg.norm(original, axis=1) * np.linalg.norm(output, axis=1)
    products: np.ndarray = (original * output).sum(1)
    return np.divide(products, norms, out=np.full_like(products, np.nan), where=norms > 0)


@torch.no_grad()
def hair_lpips(
    perceptual: Perceptual,
    originals: Sequence[np.ndarray],
    outputs: Sequence[np.ndarray],
    hair_masks: Sequence[np.ndarray],
    device: torch.device,
) -> np.ndarray:
    """LPIPS of the hair: crop around the hair mask, gray outside it, features masked.

    Unit: LPIPS distance. Direction: lower is better. Source: Zhang et al. 2018, arXiv:1801.03924. Only meaningful
    where the photo's own hair was asked for.

    Returns:
        (B,) float64; NaN for masks of fewer than `MIN_HAIR_PIXELS` pixels.
    """
    values = np.full(len(originals), np.nan)
    usable = [i for i, mask in enumerate(hair_masks) if mask.sum() >= MIN_HAIR_PIXELS]
    if not usable:
        return values
    real = to_tensor([masked_crop(originals[i], hair_masks[i], LPIPS_SIDE) for i in usable], device)
    made = to_tensor([masked_crop(outputs[i], hair_masks[i], LPIPS_SIDE) for i in usable], device)
    masks = torch.from_numpy(np.stack([mask_crop(hair_masks[i], LPIPS_SIDE) for i in usable]))[:, None].float()
    values[usable] = perceptual.distance(real, made, mask=masks.to(device)).double().cpu().numpy()
    return values


@torch.no_grad()
def predicted_classes(
    classifier: Classifier, images: Sequence[np.ndarray], device: torch.device
) -> dict[str, np.ndarray]:
    """Classes the evaluation classifier sees: {"curl": (B,), "bangs": (B,)} int64 indices."""
    logits = classifier(to_tensor(images, device))
    return {name: values.argmax(1).cpu().numpy() for name, values in logits.items()}
