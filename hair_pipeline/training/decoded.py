"""Photos as the base's VAE gives them back.

Belongs here: which photos are passed through the VAE, and the file they are kept in. Does not belong here: latents for
the stages (`training.latents`). Everything the model draws comes out of this VAE, and a small one smooths strands: a
classifier that has seen photos only would judge the VAE's smoothing instead of the hairstyle.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from hair_pipeline.files import atomic_path, hash_bytes
from hair_pipeline.models.base import decode, encode, load_base
from hair_pipeline.models.gpus import best_device
from hair_pipeline.models.weights import STAND_IN_VAE, base_reference
from hair_pipeline.training.context import Context
from hair_pipeline.training.images import to_image, to_tensor
from hair_pipeline.training.photos import PhotoStore
from hair_pipeline.training.runs import current

_MOST = 2000
"""So many photos show what the VAE does to hair, and fit into memory."""
_BATCH = 16
_PHOTOS = "photos"
"""Metadata of the file: a hash of the photos' ids. Which of them can be read may change while a run is interrupted."""


def base_vae(context: Context) -> AutoencoderKL:
    """The VAE of the profile's base, or the one that the recipe of the sample models has just trained.

    Raises:
        PipelineError: it is not there.
    """
    settings, profile = context.settings, context.profile
    if profile.base_training is not None:
        folder = current("inpainting-vae", settings).final_dir / STAND_IN_VAE
        return AutoencoderKL.from_pretrained(folder, local_files_only=True).eval()
    return load_base(base_reference(settings, profile), settings.models_dir).vae


def decoded_photos(vae: AutoencoderKL, store: PhotoStore, path: Path) -> dict[int, np.ndarray]:
    """Index in the store -> the photo, (S, S, 3) uint8, after encoding and decoding; at most 2,000, evenly spread.

    Args:
        vae: in evaluation mode.
        store: photos whose side is a multiple of the VAE's factor (`refuse_uneven_sides`).
        path: safetensors file they are kept in; read instead, if it is there and of the same photos.
    """
    chosen = np.unique(np.linspace(0, len(store) - 1, min(_MOST, len(store))).astype(int))
    photos = hash_bytes(*store.rows.image_id.iloc[chosen])
    if not path.exists() or _photos_of(path) != photos:
        with atomic_path(path) as temporary:
            save_file({"images": _decode(vae, store, chosen)}, temporary, {_PHOTOS: photos})
    return dict(zip(chosen.tolist(), load_file(path)["images"], strict=True))


def _photos_of(path: Path) -> str | None:
    with safe_open(path, framework="np") as file:
        photos: str | None = (file.metadata() or {}).get(_PHOTOS)
    return photos


@torch.no_grad()
def _decode(vae: AutoencoderKL, store: PhotoStore, chosen: np.ndarray) -> np.ndarray:
    device = best_device()
    vae = vae.to(device)
    images: list[np.ndarray] = []
    bar = tqdm(total=len(chosen), desc="photos through the VAE", unit="image", mininterval=1.0)
    for start in range(0, len(chosen), _BATCH):
        pixels = torch.stack([to_tensor(store[int(i)].image) for i in chosen[start : start + _BATCH]])
        images += [to_image(image) for image in decode(vae, encode(vae, pixels.to(device)))]
        bar.update(len(pixels))
    bar.close()
    return np.stack(images)
