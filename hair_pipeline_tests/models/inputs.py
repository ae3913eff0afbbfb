"""Inputs and models shared by the tests of models and losses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from hair_pipeline.models.attribute_tokens import AttributeTokens
from hair_pipeline.models.base import Base
from hair_pipeline.models.base import tiny_base as sample_base
from hair_pipeline.models.inpainter import HairInpainter
from hair_pipeline.models.weights import ATTRIBUTE_TOKENS
from hair_pipeline.profile import ModelsConfig

STYLE_DIM = 24
SIDE = 8


def tiny_base(seed: int = 0, vae_channels: tuple[int, ...] = (8, 8, 8, 8)) -> Base:
    """The sample profile's base, a good deal smaller still."""
    return sample_base(seed, vae_channels, (16, 16, 32), SIDE)


def save_base(base: Base, folder: Path) -> Path:
    """Write a base as the sample profile's is: with attribute tokens in the place of a text encoder."""
    base.vae.save_pretrained(folder / "vae")
    base.unet.save_pretrained(folder / "unet")
    base.noise_scheduler.save_pretrained(folder / "scheduler")
    with torch.random.fork_rng(devices=[]):
        AttributeTokens(base.unet.config.cross_attention_dim).save_pretrained(folder / ATTRIBUTE_TOKENS)
    return folder


@dataclass
class Batch:
    """Arguments of `HairInpainter.forward` for B samples of 8 x 8 latents."""

    noisy: Tensor
    t: Tensor
    mask: Tensor
    masked_latents: Tensor
    style: Tensor
    identity: Tensor
    face_mask: Tensor
    style_present: Tensor
    identity_present: Tensor

    def predict(self, model: HairInpainter) -> Tensor:
        return model(
            self.noisy,
            self.t,
            self.mask,
            self.masked_latents,
            self.style,
            self.identity,
            self.face_mask,
            style_present=self.style_present,
            identity_present=self.identity_present,
        )


def make_batch(size: int = 3, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    noisy, masked = torch.randn(2, size, 4, SIDE, SIDE, generator=generator)
    mask, face = torch.zeros(2, size, 1, SIDE, SIDE)
    mask[:, :, :3] = 1
    face[:, :, 3:7, 2:6] = 1
    return Batch(
        noisy=noisy,
        t=torch.randint(0, 1000, (size,), generator=generator),
        mask=mask,
        masked_latents=masked,
        style=torch.randn(size, STYLE_DIM, generator=generator),
        identity=F.normalize(torch.randn(size, 512, generator=generator), dim=1),
        face_mask=face,
        style_present=torch.ones(size, dtype=torch.bool),
        identity_present=torch.ones(size, dtype=torch.bool),
    )


def make_model(base: Base | None = None, *, perturbed: bool = True, **config: object) -> HairInpainter:
    """A model on the tiny base; `perturbed` gives every adapter weights that have an effect."""
    values = {"lora_rank": 4, "style_tokens": 2} | config
    finetune = values.pop("finetune_blocks", ())
    model = HairInpainter.build(base or tiny_base(), ModelsConfig.model_validate(values), STYLE_DIM, finetune)
    if perturbed:
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in model.named_trainable().values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model
