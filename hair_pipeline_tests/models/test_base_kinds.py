"""Bases of every kind go through loading, adapters and sampling without a change of code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

from hair_pipeline.errors import PipelineError
from hair_pipeline.models.architectures import KNOWN, SD15_INPAINTING, Architecture, architecture_of
from hair_pipeline.models.base import Base, load_base
from hair_pipeline.models.inpainter import HairInpainter
from hair_pipeline.models.pipeline import HairInpaintPipeline
from hair_pipeline.profile import ModelsConfig
from hair_pipeline_tests.models.inputs import save_base

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 9,
    "out_channels": 4,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 48,
    "norm_num_groups": 8,
}
VAE_F8: dict[str, Any] = {
    "block_out_channels": (8, 8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
VAE_F4 = VAE_F8 | {
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
}
NOISE = {"beta_schedule": "scaled_linear", "clip_sample": False}
KINDS = {
    "inpainting, as Stable Diffusion 1.5": Architecture(VAE_F8, UNET, NOISE, 1),
    "text to image, widened": Architecture(VAE_F8, UNET | {"in_channels": 4}, NOISE, 1),
    "another width, linear projections, velocity, as Stable Diffusion 2": Architecture(
        VAE_F8,
        UNET | {"cross_attention_dim": 80, "attention_head_dim": (2, 4), "use_linear_projection": True},
        NOISE | {"prediction_type": "v_prediction"},
        1,
    ),
    "a VAE of factor 4 and 16 channels": Architecture(
        VAE_F4 | {"latent_channels": 16, "shift_factor": 0.1}, UNET | {"in_channels": 33, "out_channels": 16}, NOISE, 1
    ),
}


def saved(architecture: Architecture, folder: Path) -> Path:
    """The base's folder as a publisher would ship it: the UNet not widened."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(architecture.unet)
    scheduler = DDPMScheduler.from_config(architecture.noise)
    return save_base(Base(AutoencoderKL.from_config(architecture.vae), unet, scheduler, torch.zeros(0)), folder)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_base_is_loaded_adapted_and_sampled(kind: str, tmp_path: Path) -> None:
    base = load_base(saved(KINDS[kind], tmp_path))
    channels = base.vae.config.latent_channels
    assert base.unet.config.in_channels == 2 * channels + 1
    model = HairInpainter.build(base, ModelsConfig(lora_rank=2, style_tokens=2), 8)
    pipeline = HairInpaintPipeline.from_inpainter(model, base, "dpm++")
    pipeline.set_progress_bar_config(disable=True)
    hair, face = np.zeros((2, 64, 64), bool)
    hair[4:30] = True
    face[34:60, 16:48] = True
    result = pipeline(
        [np.full((64, 64, 3), 120, np.uint8)],
        [hair],
        [face],
        torch.randn(1, 8),
        torch.nn.functional.normalize(torch.randn(1, 512), dim=1),
        resolution=64,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
    )
    assert result.images[0].shape == (64, 64, 3)
    assert result.images[0][4:20].std() > 0
    assert pipeline.scheduler.config.prediction_type == base.noise_scheduler.config.prediction_type


def test_architecture_of_a_folder_and_of_a_known_name(tmp_path: Path) -> None:
    folder = saved(KINDS["text to image, widened"], tmp_path / "base")
    found: Base = architecture_of("base", tmp_path).build()
    assert found.unet.config.in_channels == 9
    assert found.null_tokens.shape == (1, 1, 48)
    assert architecture_of(str(folder)).unet["cross_attention_dim"] == 48
    assert architecture_of("stable-diffusion-v1-5/stable-diffusion-inpainting") is SD15_INPAINTING
    with pytest.raises(PipelineError, match="no such base"):
        architecture_of("nothing-here", tmp_path)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_known_architectures_have_the_published_sizes(name: str) -> None:
    with torch.device("meta"):
        base = KNOWN[name].build()
    millions = sum(p.numel() for p in base.unet.parameters()) / 1e6
    assert millions == pytest.approx(859.5 if "2-inpainting" not in name else 865.9, abs=0.5)
    assert sum(p.numel() for p in base.vae.parameters()) / 1e6 == pytest.approx(83.7, abs=0.1)
