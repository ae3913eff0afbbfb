"""Validation of the stages: the same noise and timesteps every time, for the loss and for sampled images.

Belongs here: numbers and pictures of held-out people during training. Does not belong here: the evaluation report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler
from torch import Tensor
from torch.utils.data import default_collate

from hair_pipeline.losses.mask_l2 import mask_l2
from hair_pipeline.losses.predictions import add_noise, target
from hair_pipeline.models.base import decode
from hair_pipeline.models.perceptual import PerceptualNet
from hair_pipeline.training.data import StageDataset, face_lock
from hair_pipeline.training.images import to_image
from hair_pipeline.training.sampler import Draw
from hair_pipeline.training.task import Batch

Predict = Callable[[Tensor, Tensor, Batch], Tensor]
"""(noisy latents, timesteps, batch) -> the network's prediction."""

TIMESTEPS_PER_IMAGE = 4
IMAGES_AT_ONCE = 16
"""Batch of the validation's forward passes."""
SAMPLED_AT_ONCE = 8
"""Batch in which images are sampled. They are decoded and compared one by one, which takes the memory."""
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


@dataclass(frozen=True)
class Sampled:
    """What the network made of the held-out images.

    Attributes:
        hair_lpips: mean perceptual distance to the original inside the hair mask, over the images with enough hair;
            None where there is none, or no perceptual network.
        rows: for a few images: original, bald image and result, RGB uint8.
    """

    hair_lpips: float | None
    rows: list[list[np.ndarray]]


def sample_held_out(
    predict: Predict,
    data: StageDataset,
    scheduler: DDPMScheduler,
    vae: AutoencoderKL,
    perceptual: PerceptualNet | None,
    device: torch.device,
) -> Sampled:
    """Sample every held-out image from its own noise, the same every time (DDIM, face latents kept)."""
    shown = set(np.linspace(0, len(data) - 1, min(_PICTURES, len(data))).astype(int).tolist())
    rows: list[list[np.ndarray]] = []
    distances: list[Tensor] = []
    for start in range(0, len(data), SAMPLED_AT_ONCE):
        places = range(start, min(start + SAMPLED_AT_ONCE, len(data)))
        batch = default_collate([data[Draw(i, i)] for i in places])
        batch = {name: value.to(device) for name, value in batch.items()}
        result = decode(vae, sample(predict, batch, scheduler)).float().clamp(-1, 1)
        original = decode(vae, batch["latents"]).float().clamp(-1, 1)
        if perceptual is not None:
            distances += compare(perceptual, result, original, batch["hair_pixels"])
        for i in (place - start for place in places if place in shown):
            bald = decode(vae, batch["masked_latents"][i : i + 1])[0]
            rows.append([to_image(original[i]), to_image(bald), to_image(result[i])])
    known = torch.cat(distances) if distances else torch.zeros(0)
    known = known[~known.isnan()]  # NaN: too little hair to compare
    return Sampled(float(known.mean()) if len(known) else None, rows)


def compare(perceptual: PerceptualNet, results: Tensor, originals: Tensor, masks: Tensor) -> list[Tensor]:
    """Each image's perceptual distance (1,) to its original within its mask, on the CPU.

    One by one: the feature maps of eight images of 512 x 512 take more memory than a step of training.
    """
    pairs = zip(results.split(1), originals.split(1), masks.split(1), strict=True)
    return [perceptual.distance(result, original, mask).cpu() for result, original, mask in pairs]


def sample(predict: Predict, batch: Batch, scheduler: DDPMScheduler) -> Tensor:
    """DDIM sampling from the batch's noise; whole face cells outside the repaint mask follow the original."""
    ddim = DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing", clip_sample=False)
    ddim.set_timesteps(_SAMPLER_STEPS, device=batch["latents"].device)
    noise = batch["noise"]
    locked = face_lock(batch)
    x = noise * ddim.init_noise_sigma
    for t in ddim.timesteps:
        steps = t.expand(len(x)).to(x.device)
        original = add_noise(batch["latents"], noise, steps, scheduler.alphas_cumprod)
        x = torch.where(locked, original, x)
        x = ddim.step(predict(x, steps, batch).float(), t, x).prev_sample
    return torch.where(locked, batch["latents"], x)
