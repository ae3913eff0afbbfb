"""The small VAE's starting weights pass colours through."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from hair_pipeline.models.base import tiny_base
from hair_pipeline.training.vae_start import single_group, start_from_averages


def test_it_starts_as_a_blur_of_the_image() -> None:
    vae = single_group(tiny_base(0).vae, 0)
    start_from_averages(vae)
    torch.manual_seed(0)
    images = F.interpolate(torch.rand(2, 3, 4, 4) * 1.6 - 0.8, size=(128, 128), mode="bicubic").clamp(-1, 1)
    with torch.no_grad():
        output = vae.decode(vae.encode(images).latent_dist.mode()).sample
    inner = (..., slice(16, -16), slice(16, -16))
    assert float((output[inner] - images[inner]).abs().mean()) < 0.12
    colours = torch.corrcoef(torch.stack([output[inner].flatten(), images[inner].flatten()]))[0, 1]
    assert float(colours) > 0.95
