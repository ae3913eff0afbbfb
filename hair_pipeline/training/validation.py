"""Validation of the stages: the same noise and timesteps every time, and a few sampled pictures.

Belongs here: numbers and pictures of held-out people during training. Does not belong here: the evaluation report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler
from torch import Tensor
from torch.utils.data import default_collate

from hair_pipeline.losses.mask_l2 import mask_l2
from hair_pipeline.losses.predictions import add_noise, target
from hair_pipeline.models.base import decode
from hair_pipeline.training.data import StageDataset
from hair_pipeline.training.images import to_image
from hair_pipeline.training.pictures import picture_grid, write_picture
from hair_pipeline.training.sampler import Draw, generator
from hair_pipeline.training.task import Batch

Predict = Callable[[Tensor, Tensor, Batch], Tensor]
"""(noisy latents, timesteps, batch) -> the network's prediction."""

TIMESTEPS_PER_IMAGE = 4
IMAGES_AT_ONCE = 16
"""Batch of the validation's forward passes."""
_PICTURES = 5
_SAMPLER_STEPS = 10


def hair_l2(predict: Predict, data: StageDataset, scheduler: DDPMScheduler, device: torch.device) -> float | None:
    """Mean squared error of the prediction in the hair region, over fixed noise and timesteps of every image.

    Returns:
        None when there is no image.
    """
    values: list[float] = []
    for batch in fixed_batches(data, TIMESTEPS_PER_IMAGE):
        batch = {name: value.to(device) for name, value in batch.items()}
        noisy = add_noise(batch["latents"], batch["noise"], batch["t"], scheduler.alphas_cumprod)
        prediction = predict(noisy, batch["t"], batch).float()
        wanted = target(
            scheduler.config.prediction_type, batch["latents"], batch["noise"], batch["t"], scheduler.alphas_cumprod
        )
        for i in range(len(noisy)):
            one = slice(i, i + 1)
            values.append(float(mask_l2(prediction[one], wanted[one], batch["hair"][one])))
    return float(np.mean(values)) if values else None


def fixed_batches(data: StageDataset, repeats: int) -> Iterator[Batch]:
    """Every sample `repeats` times with different, always equal noise and timesteps."""
    draws = [Draw(i, repeat * len(data) + i) for repeat in range(repeats) for i in range(len(data))]
    for start in range(0, len(draws), IMAGES_AT_ONCE):
        yield default_collate([data[draw] for draw in draws[start : start + IMAGES_AT_ONCE]])


def sampled_pictures(
    predict: Predict, data: StageDataset, scheduler: DDPMScheduler, vae: AutoencoderKL, device: torch.device, path: Path
) -> list[Path]:
    """A grid of held-out images: original, bald image, sampled result (DDIM, face latents kept). Empty without data."""
    if not len(data):
        return []
    places = np.linspace(0, len(data) - 1, min(_PICTURES, len(data))).astype(int)
    batch = default_collate([data[Draw(int(i), int(i))] for i in places])
    batch = {name: value.to(device) for name, value in batch.items()}
    result = sample(predict, batch, scheduler)
    columns = [decode(vae, latents) for latents in (batch["latents"], batch["masked_latents"], result)]
    rows = [[to_image(column[i]) for column in columns] for i in range(len(places))]
    return [write_picture(path, picture_grid(rows, 112))]


def sample(predict: Predict, batch: Batch, scheduler: DDPMScheduler) -> Tensor:
    """DDIM sampling of a batch's latents; whole face cells outside the repaint mask follow the original."""
    ddim = DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing", clip_sample=False)
    ddim.set_timesteps(_SAMPLER_STEPS, device=batch["latents"].device)
    noise = torch.randn(batch["latents"].shape, generator=generator(0, 6)).to(batch["latents"].device)
    locked = face_lock(batch)
    x = noise * ddim.init_noise_sigma
    for t in ddim.timesteps:
        steps = t.expand(len(x)).to(x.device)
        original = add_noise(batch["latents"], noise, steps, scheduler.alphas_cumprod)
        x = torch.where(locked, original, x)
        x = ddim.step(predict(x, steps, batch).float(), t, x).prev_sample
    return torch.where(locked, batch["latents"], x)


def face_lock(batch: Batch) -> Tensor:
    """Latent cells (B, 1, h, w) bool that are face throughout and not repainted: they stay the original's."""
    return (batch["face"] >= 1) & (batch["mask"] < 0.5)
