"""Public configurations of diffusion bases, so that one can be reckoned with before (or without) its weights.

Belongs here: the shapes of known bases, and building one with random weights. Does not belong here: loading weights
(`base`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

from hair_pipeline.errors import PipelineError
from hair_pipeline.models.base import Base
from hair_pipeline.models.weights import STAND_IN_BASE, base_source

_STABLE_DIFFUSION_UNET = {
    "sample_size": 64,
    "in_channels": 9,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
_STABLE_DIFFUSION_VAE = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
_STABLE_DIFFUSION_NOISE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Architecture:
    """The configurations a base is built from, as in its folder's `config.json` files.

    Attributes:
        vae, unet, noise: of `AutoencoderKL`, `UNet2DConditionModel` and `DDPMScheduler`.
        prompt_length: tokens of the encoded empty prompt.
    """

    vae: dict[str, Any]
    unet: dict[str, Any]
    noise: dict[str, Any] = field(default_factory=lambda: dict(_STABLE_DIFFUSION_NOISE))
    prompt_length: int = 77

    def build(self) -> Base:
        """A base with random weights, or without any under `torch.device("meta")`."""
        vae = AutoencoderKL.from_config(self.vae)
        unet = UNet2DConditionModel.from_config(self.unet)
        null_tokens = torch.zeros(1, self.prompt_length, unet.config.cross_attention_dim)
        noise = DDPMScheduler.from_config(self.noise)
        return Base.assemble(vae, unet, noise, null_tokens)


SD15_INPAINTING = Architecture(_STABLE_DIFFUSION_VAE, _STABLE_DIFFUSION_UNET)
SD2_INPAINTING = Architecture(
    _STABLE_DIFFUSION_VAE,
    _STABLE_DIFFUSION_UNET
    | {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
)

KNOWN = {
    "stable-diffusion-v1-5/stable-diffusion-inpainting": SD15_INPAINTING,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": SD15_INPAINTING,
    "sd2-community/stable-diffusion-2-inpainting": SD2_INPAINTING,
    "stabilityai/stable-diffusion-2-inpainting": SD2_INPAINTING,
}
"""By hub id. (A text-to-image base is widened to 9 channels, so its shape is the inpainting one's.)"""


def architecture_of(reference: str | Path, models_dir: Path | None = None) -> Architecture:
    """The architecture of a base, without its weights: from its folder, from `KNOWN`, or from the hub.

    Raises:
        PipelineError: there is no such base.
    """
    if str(reference) in KNOWN:
        return KNOWN[str(reference)]
    source, local = base_source(str(reference), models_dir)
    try:
        vae, unet, noise = (
            kind.load_config(source, subfolder=part, local_files_only=local)
            for kind, part in ((AutoencoderKL, "vae"), (UNet2DConditionModel, "unet"), (DDPMScheduler, "scheduler"))
        )
    except (OSError, ValueError) as error:
        raise PipelineError(
            f"the base model's configuration cannot be read: {str(error).strip().splitlines()[0]}",
            file=source,
            remedy=f"give models.base a diffusers folder, one of {', '.join(KNOWN)}, or allow access to the hub",
        ) from error
    with_text = not local or (Path(source) / "text_encoder").is_dir()
    return Architecture(vae, unet, noise, 77 if with_text else 1)


def is_stand_in(reference: str | Path) -> bool:
    """Whether a profile's `models.base` means the small base trained from the inputs."""
    return str(reference) in ("stand_in", STAND_IN_BASE)
