"""The diffusion base: VAE, 9-channel inpainting UNet and noise schedule, from any diffusers folder or hub id.

Belongs here: loading, widening of 4-channel UNets, encoding and decoding, the small base of the sample profile.
Does not belong here: adapters (`inpainter`) and sampling (`pipeline`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from hair_pipeline.errors import PipelineError
from hair_pipeline.models.weights import ATTRIBUTE_TOKENS, PARTS, base_source, missing_text_parts, variant

log = logging.getLogger(__name__)

INPAINTING_CHANNELS_PER_LATENT = 2
"""A 9-channel UNet takes 2 x 4 latent channels and 1 mask channel."""


@dataclass
class Base:
    """The networks an inpainting model is built on.

    Attributes:
        vae: maps images (B, 3, H, W) in [-1, 1] to latents (B, C, H/f, W/f); f is `latent_factor(vae)`.
        unet: takes (B, 2C + 1, h, w): noisy latents, mask (1 = repaint), latents of the masked image.
        noise_scheduler: the schedule the base was trained with; `config.prediction_type` says what it predicts.
        null_tokens: (1, L, cross_attention_dim), the encoded empty prompt; one zero token where the base has attribute
            tokens instead of a text encoder, as the small base of the sample profile.
        widened: the UNet's inputs for mask and masked image are new, and have no effect before they are trained.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    noise_scheduler: DDPMScheduler
    null_tokens: Tensor
    widened: bool = False

    @classmethod
    def assemble(
        cls, vae: AutoencoderKL, unet: UNet2DConditionModel, noise_scheduler: DDPMScheduler, null_tokens: Tensor
    ) -> Base:
        """A base of networks as they are published: a text-to-image UNet is widened, see `widen`."""
        channels = int(vae.config.latent_channels)
        widened = unet.config.in_channels == channels
        return cls(vae.eval(), widen(unet, channels), noise_scheduler, null_tokens, widened)


def load_base(reference: str | Path, models_dir: Path | None = None) -> Base:
    """Load a base of the Stable Diffusion family, UNets of 4 inputs widened to 9.

    Args:
        reference: a diffusers folder, or a hub id such as "stable-diffusion-v1-5/stable-diffusion-inpainting".
            `models_dir/<id>` and `models_dir/<last part of id>` are looked in before the hub.
        models_dir: folder of local weights.

    Raises:
        PipelineError: not found, incomplete, or the UNet fits neither text-to-image nor inpainting.
    """
    source, local = base_source(str(reference), models_dir)
    if local and (missing := missing_text_parts(Path(source))):
        raise PipelineError(
            f"the base has no {' and no '.join(missing)}: nothing tells its empty prompt, where an absent style begins",
            file=source,
            remedy="copy or download them into the folder, from where its unet/ came",
        )
    options: dict[str, Any] = {"local_files_only": local, "use_safetensors": True}
    try:
        vae = AutoencoderKL.from_pretrained(source, subfolder="vae", variant=variant(Path(source) / "vae"), **options)
        unet = UNet2DConditionModel.from_pretrained(
            source, subfolder="unet", variant=variant(Path(source) / "unet"), **options
        )
        scheduler = DDPMScheduler.from_pretrained(source, subfolder="scheduler", local_files_only=local)
        _refuse_what_asks_for_more_than_text(unet, source)
        null_tokens = _null_tokens(source, local, unet.config.cross_attention_dim)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise _cannot_be_loaded(source, error) from error
    if null_tokens.shape[-1] != unet.config.cross_attention_dim:
        raise PipelineError(
            f"its parts belong to different models: text_encoder/ gives {null_tokens.shape[-1]} values per token, "
            f"unet/ takes {unet.config.cross_attention_dim}",
            file=source,
            remedy="take all parts from one model",
        )
    return Base.assemble(vae, unet, scheduler, null_tokens)


def _refuse_what_asks_for_more_than_text(unet: UNet2DConditionModel, source: str) -> None:
    """Refuse UNets that are not Stable Diffusion's, before they fail at their first step.

    Raises:
        PipelineError: it takes size or class embeddings (SDXL), or tokens of several widths.
    """
    config = unet.config
    asks = [name for name in ("addition_embed_type", "class_embed_type") if config.get(name) is not None]
    if not isinstance(config.cross_attention_dim, int):
        asks.append(f"cross_attention_dim {config.cross_attention_dim}")
    if asks:
        raise PipelineError(
            f"its UNet is not of the Stable Diffusion 1 and 2 family: it has {', '.join(asks)}",
            file=source,
            remedy="set models.base to an inpainting model of that family, such as "
            "stable-diffusion-v1-5/stable-diffusion-inpainting",
        )


def hub_commit(hub_id: str) -> str:
    """The commit of a base on the hub that `load_base` would read now: the newest, or the cached one when offline.

    Raises:
        PipelineError: the hub does not have it, or cannot be reached.
    """
    try:
        _, commit = UNet2DConditionModel.load_config(hub_id, subfolder="unet", return_commit_hash=True)
    except (OSError, ValueError) as error:
        raise _cannot_be_loaded(hub_id, error) from error
    return str(commit)


def _cannot_be_loaded(source: str, error: Exception) -> PipelineError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return PipelineError(
        f"the base model cannot be loaded: {reason}",
        file=source,
        remedy=f"give models.base a diffusers folder with {PARTS} (safetensors), put one named "
        f"{Path(source).name} into HAIR_PIPELINE_MODELS_DIR, or allow access to the hub",
    )


def _null_tokens(source: str, local: bool, dim: int) -> Tensor:
    """The encoded empty prompt (1, L, dim), or zeros (1, 1, dim) where the base knows no prompts."""
    if local and (Path(source) / ATTRIBUTE_TOKENS).is_dir():
        return torch.zeros(1, 1, dim)
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer", local_files_only=local)
    part = "text_encoder"
    encoder = CLIPTextModel.from_pretrained(
        source, subfolder=part, variant=variant(Path(source) / part), local_files_only=local
    ).float()
    ids = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids
    with torch.no_grad():
        return encoder(ids)[0].float()


def widen(unet: UNet2DConditionModel, latent_channels: int) -> UNet2DConditionModel:
    """Give a text-to-image UNet the mask and masked-image inputs: old weights copied, new ones zero.

    So widened, it predicts exactly what it predicted before, whatever stands in the new channels: it does not see them
    until its `conv_in` is trained.

    Raises:
        PipelineError: the UNet has neither C nor 2C + 1 input channels.
    """
    wanted = INPAINTING_CHANNELS_PER_LATENT * latent_channels + 1
    if unet.config.in_channels == wanted:
        return unet
    if unet.config.in_channels != latent_channels:
        raise PipelineError(
            f"the UNet takes {unet.config.in_channels} channels, neither {latent_channels} nor {wanted}",
            remedy="choose a text-to-image or inpainting base whose VAE and UNet belong together",
        )
    old = unet.conv_in
    new = nn.Conv2d(wanted, old.out_channels, 3, padding=old.padding, dtype=old.weight.dtype, device=old.weight.device)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, :latent_channels] = old.weight
        new.bias.copy_(old.bias)  # type: ignore[union-attr]
    unet.conv_in = new
    unet.register_to_config(in_channels=wanted)
    log.info("widened the UNet from %d to %d input channels", latent_channels, wanted)
    return unet


def latent_factor(vae: AutoencoderKL) -> int:
    """Pixels per latent cell along one side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def refuse_uneven_sides(vae: AutoencoderKL, sides: Mapping[str, int]) -> None:
    """Images come back from the VAE at another size when their side is no multiple of its factor.

    Args:
        sides: profile value -> side in pixels.

    Raises:
        PipelineError: a side is no multiple of the factor; names the value and the nearest ones that are.
    """
    factor = latent_factor(vae)
    for name, side in sides.items():
        if side % factor:
            below = side // factor * factor
            choice = f"{below} or {below + factor}" if below else str(factor)
            raise PipelineError(
                f"{name} = {side} is no multiple of {factor}, the base's pixels per latent cell",
                remedy=f"set {name} to {choice} in the profile",
            )


def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] -> scaled latents (B, C, H/f, W/f): the posterior's mode, not a sample."""
    latents: Tensor = vae.encode(images.to(vae.dtype)).latent_dist.mode()
    return (latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Scaled latents (B, C, h, w) -> images (B, 3, H, W), nominally in [-1, 1] (not clamped); differentiable."""
    latents = latents.to(vae.dtype) / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
    images: Tensor = vae.decode(latents).sample
    return images


def tiny_base(
    seed: int = 0,
    vae_channels: tuple[int, ...] = (16, 32, 64),
    unet_channels: tuple[int, int, int] = (32, 96, 128),
    latent_size: int = 32,
) -> Base:
    """A small random base with the shapes of Stable Diffusion's: what the sample profile trains, and tests use.

    Args:
        seed: of the random weights; the global generator is left as it was.
        vae_channels: one entry per resolution; the factor is 2 ** (entries - 1).
        unet_channels: one entry per resolution, multiples of 16; the last two have cross-attention.
        latent_size: side of the latents the UNet is meant for.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stages = len(vae_channels)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * stages,
            up_block_types=("UpDecoderBlock2D",) * stages,
            block_out_channels=vae_channels,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=latent_size * 2 ** (stages - 1),
            mid_block_add_attention=False,
        )
        unet = UNet2DConditionModel(
            sample_size=latent_size,
            in_channels=9,
            out_channels=4,
            block_out_channels=unet_channels,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=4,
            cross_attention_dim=64,
            norm_num_groups=16,
        )
    # Velocity and zero terminal SNR (Salimans & Ho 2022; Lin et al. 2024): a network that has learnt for minutes gets
    # colours right, where predicted noise leaves them to chance at the first, noisiest steps.
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        steps_offset=1,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    return Base(vae.eval(), unet, scheduler, torch.zeros(1, 1, 64))
