"""The VAE of the stand-in base: images of people, hair and bald heads to four latent channels at a quarter of the side.

Belongs here: its task and measured quality. Does not belong here: its starting weights (`training.vae_start`) and the
UNet on its latents (`trainers.inpainting_unet`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.samples import Sample
from hair_pipeline.models.base import encode, latent_factor, tiny_base
from hair_pipeline.models.weights import STAND_IN_VAE
from hair_pipeline.processing.bald import make_bald
from hair_pipeline.profile import BaldConfig
from hair_pipeline.training.context import Context, Finished, base_training, network_loop, seed_everything
from hair_pipeline.training.images import to_image, to_tensor
from hair_pipeline.training.photos import PhotoStore, hair_only, in_batches, split_rows
from hair_pipeline.training.pictures import picture_grid, write_picture
from hair_pipeline.training.sampler import Batches, Draw, StreamBatches, generator
from hair_pipeline.training.task import Batch, LoopConfig, StepLosses, Task
from hair_pipeline.training.vae_start import single_group, start_from_averages

_KL_WEIGHT = 1e-6
_EDGE_WEIGHT = 0.5
_CROP = 2
"""The VAE is trained on squares of the image's side divided by this."""
_MAX_VALIDATION = 64


def run(context: Context) -> Finished:
    """Train the VAE and set its scaling factor."""
    config = base_training(context)
    seed_everything(config.seed)
    vae = single_group(tiny_base(config.seed).vae, config.seed)
    start_from_averages(vae)
    catalog = read_catalog(context.settings.catalog_path)
    photos = PhotoStore(split_rows(catalog, "train"), context.settings, config.resolution)
    held_out_rows = spread(split_rows(catalog, "validation"), _MAX_VALIDATION)
    held_out = PhotoStore(held_out_rows, context.settings, config.resolution) if len(held_out_rows) else None
    task = VaeTask(vae, photos, held_out, context.profile.processing.bald, config.vae.learning_rate, config.seed)
    result = context.loop(task, network_loop(config.vae, config.seed))
    scale_latents(vae, photos)
    metrics = {f"{name}_start": value for name, value in result.start.items()} | result.end
    metrics |= {"images": float(len(photos)), "held_out_images": float(len(held_out_rows))}
    metrics |= {"scaling_factor": float(vae.config.scaling_factor), "seconds": result.seconds}
    notes = {} if held_out is not None else {"validation": "no held-out photo"}

    def save(folder: Path) -> None:
        vae.save_pretrained(folder / STAND_IN_VAE)

    return Finished(save, metrics, notes, result.pictures)


def spread(rows: Any, most: int) -> Any:
    """At most so many of the table's rows, evenly spread."""
    return rows.iloc[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]


class VaeImages(Dataset[Batch]):
    """What a VAE has to render here: photos, hair-only images on gray, bald images; image (3, S, S), hair (1, S, S)."""

    def __init__(self, photos: PhotoStore, bald: BaldConfig, seed: int, *, train: bool) -> None:
        self.photos = photos
        self.bald = bald
        self.seed = seed
        self.train = train
        self._bald: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, draw: Draw) -> Batch:
        chance = generator(self.seed, 8, draw.position)
        u = torch.rand(2, generator=chance).tolist() if self.train else [0.0, 0.0]
        sample = self.photos[draw.index]
        image = sample.image
        if u[0] > 0.85:
            image = self._bald_image(draw.index, sample)
        elif u[0] > 0.7:
            image = hair_only(sample)
        pixels, hair = to_tensor(image), torch.from_numpy(sample.hair_mask)[None].float()
        if u[1] > 0.5:
            pixels, hair = pixels.flip(-1), hair.flip(-1)
        if self.train:  # crops: the network is convolutional, and a quarter of the pixels costs a quarter
            side = pixels.shape[-1] // _CROP
            y, x = torch.randint(pixels.shape[-1] - side + 1, (2,), generator=chance).tolist()
            pixels, hair = (part[:, y : y + side, x : x + side].contiguous() for part in (pixels, hair))
        return {"image": pixels, "hair": hair}

    def _bald_image(self, index: int, sample: Sample) -> np.ndarray:
        if index not in self._bald:
            masks = sample.hair_mask, sample.face_mask
            self._bald[index] = make_bald(sample.image, *masks, self.bald, window=sample.window)[0]
        return self._bald[index]


class _Autoencoder(nn.Module):
    """Encode, sample the posterior with given noise, decode; so that one forward call is what Accelerate wraps."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist
        z = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        decoded = self.vae.decode(z.contiguous(memory_format=torch.channels_last)).sample
        return decoded, posterior.kl() / images[0].numel()


class VaeTask(Task):
    """Absolute error of pixels and of their differences (edges: strands), doubled in the hair, and a small KL term."""

    def __init__(
        self,
        vae: AutoencoderKL,
        photos: PhotoStore,
        held_out: PhotoStore | None,
        bald: BaldConfig,
        learning_rate: float,
        seed: int,
    ) -> None:
        self.data = VaeImages(photos, bald, seed, train=True)
        super().__init__("vae", _Autoencoder(vae), self.data)
        self.held_out = None if held_out is None else VaeImages(held_out, bald, seed, train=False)
        self.learning_rate = learning_rate
        self.seed = seed
        self.factor = latent_factor(vae)
        self.channels = int(vae.config.latent_channels)

    def batches(self, config: LoopConfig) -> Batches:
        return StreamBatches(len(self.data), config.batch_size, config.seed)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": self.learning_rate}]

    def losses(self, batch: Batch, step: int) -> StepLosses:
        images, weight = batch["image"], 1 + batch["hair"]
        side = images.shape[-1] // self.factor
        noise = torch.randn(len(images), self.channels, side, side, generator=generator(self.seed, 9, step))
        output, kl = self.prepared(images, noise.to(images.device))
        difference = output.float() - images
        raw = {
            "pixels": (difference.abs() * weight).mean(),
            "edges": (difference.diff(dim=-1).abs() * weight[..., 1:]).mean()
            + (difference.diff(dim=-2).abs() * weight[..., 1:, :]).mean(),
            "kl": kl.mean(),
        }
        return StepLosses(raw, {"pixels": 1.0, "edges": _EDGE_WEIGHT, "kl": _KL_WEIGHT})

    def validate(self, step: int) -> dict[str, float]:
        del step
        if self.held_out is None:
            return {}
        errors, hair_errors = [], []
        for batch in in_batches(self.held_out, len(self.held_out), default_collate, 8):
            output, _ = self.network(batch["image"].to(self.device), None)
            error = ((output.cpu().clamp(-1, 1) - batch["image"]) / 2).square()
            errors.append(error.mean((1, 2, 3)))
            hair_errors.append((error * batch["hair"]).sum((1, 2, 3)) / (3 * batch["hair"].sum((1, 2, 3)).clamp(min=1)))
        return {"psnr": _psnr(torch.cat(errors)), "hair_psnr": _psnr(torch.cat(hair_errors))}

    def pictures(self, folder: Path) -> list[Path]:
        data = self.held_out or VaeImages(self.data.photos, self.data.bald, self.seed, train=False)
        places = np.linspace(0, len(data) - 1, min(6, len(data))).astype(int)
        batch = default_collate([data[Draw(int(i), int(i))] for i in places])
        output, _ = self.network(batch["image"].to(self.device), None)
        rows = [[to_image(a), to_image(b)] for a, b in zip(batch["image"], output, strict=True)]
        grid = picture_grid(list(map(list, zip(*rows, strict=True))), 112)
        return [write_picture(folder / "reconstructions.jpg", grid)]


def _psnr(error: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, averaged over images, of their mean squared errors on a scale of 0 to 1."""
    return float((-10 * error.clamp(min=1e-10).log10()).mean())


@torch.no_grad()
def scale_latents(vae: AutoencoderKL, photos: PhotoStore) -> None:
    """Set the VAE's scaling factor so that scaled latents have standard deviation 1 (Rombach et al. 2022)."""
    vae.register_to_config(scaling_factor=1.0)
    device = next(vae.parameters()).device
    count = min(64, len(photos))
    images = torch.stack([to_tensor(photos[int(i)].image) for i in np.linspace(0, len(photos) - 1, count)])
    latents = torch.cat([encode(vae, part.to(device)) for part in images.split(16)])
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 6))
