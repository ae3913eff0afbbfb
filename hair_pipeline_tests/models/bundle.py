"""What every bundle of sample models must be: readable by stock loaders, unchanged, small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from lpips import LPIPS
from safetensors.torch import load_file

from hair_pipeline.files import hash_file

MOST_BYTES = 30_000_000


def check_bundle(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert set(files) == set(card["files"]) | {"card.json", "README.md"}
    for name, wanted in card["files"].items():
        assert hash_file(files[name]) == wanted, name
    assert sum(path.stat().st_size for path in files.values()) <= MOST_BYTES
    assert {path.suffix for path in files.values()} <= {".safetensors", ".onnx", ".json", ".md"}

    vae = AutoencoderKL.from_pretrained(folder / "inpainting" / "vae")
    unet = UNet2DConditionModel.from_pretrained(folder / "inpainting" / "unet")
    scheduler = DDPMScheduler.from_pretrained(folder / "inpainting" / "scheduler")
    assert vae.dtype == unet.dtype == torch.float32
    with torch.no_grad():
        latents = vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mode()
        assert latents.shape[1] == 4
        inputs = torch.cat([latents, latents[:, :1], latents], 1)
        predicted = unet(inputs, 500, torch.zeros(1, 4, unet.config.cross_attention_dim)).sample
        assert torch.isfinite(vae.decode(predicted).sample).all()
    assert unet.config.in_channels == 9
    assert scheduler.config.prediction_type == "v_prediction"

    session = onnxruntime.InferenceSession(folder / "face_recogniser.onnx")
    found = session.run(None, {session.get_inputs()[0].name: np.zeros((2, 3, 112, 112), np.float32)})[0]
    assert found.shape == (2, 512)

    network = LPIPS(pretrained=False, net="alex", pnet_rand=True, verbose=False)
    network.load_state_dict(load_file(folder / "perceptual_alex.safetensors"), strict=False)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    assert float(network(image, image).detach()) == 0 < float(network(image, -image).detach())
