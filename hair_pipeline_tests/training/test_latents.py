"""What an encoder gives can be written, whatever its VAE leaves in memory."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from hair_pipeline.training.latents import _Encoder, _Rows


def test_latents_of_a_vae_with_attention_can_be_saved(tmp_path: Path) -> None:
    """As every published one has it: it leaves latents channels-last, which safetensors refuses."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        mid_block_add_attention=True,
    ).eval()
    latents = _Encoder(vae)([np.full((16, 16, 3), value, np.uint8) for value in (0, 90, 255)])
    rows = _Rows(16)
    rows.add({"latents": latents[0], "bald": latents[1:]})
    rows.add({"latents": latents[2], "bald": latents[:2]})
    save_file(rows.stacked("photo"), tmp_path / "latents.safetensors")
    saved = load_file(tmp_path / "latents.safetensors")
    torch.testing.assert_close(saved["photo.bald"][0], latents[1:])
