"""The stand-in base: a small VAE, then a small 9-channel UNet as a plain inpainting diffusion, on the inputs' photos.

Belongs here: their tasks and measured quality. Does not belong here: the architectures (`models.base.tiny_base`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import hash_bytes, write_json
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.samples import Sample
from hair_pipeline.losses.predictions import add_noise, target
from hair_pipeline.models.base import Base, encode, tiny_base
from hair_pipeline.models.masks import resize_mask
from hair_pipeline.models.weights import STAND_IN_BASE
from hair_pipeline.processing.bald import make_bald, vary_mask
from hair_pipeline.profile import BaldConfig
from hair_pipeline.training.context import Context, Finished, seed_everything
from hair_pipeline.training.images import BACKGROUND, to_image, to_tensor
from hair_pipeline.training.loop import LoopResult
from hair_pipeline.training.photos import PhotoStore, hair_only, in_batches, split_rows
from hair_pipeline.training.pictures import picture_grid, write_picture
from hair_pipeline.training.sampler import Batches, Draw, StreamBatches, generator
from hair_pipeline.training.task import Batch, LoopConfig, StepLosses, Task
from hair_pipeline.training.vae_start import single_group, start_from_averages

VAE_LEARNING_RATE = 8e-4
UNET_LEARNING_RATE = 1.5e-3
_VAE_BATCH = 4
_UNET_BATCH = 16
_KL_WEIGHT = 1e-6
_EDGE_WEIGHT = 0.5
_VARIANTS = 3
_CROP = 2
"""The VAE is trained on squares of the image's side divided by this."""
_MAX_VALIDATION = 24


def run(context: Context) -> Finished:
    """Train the VAE, then the UNet on its latents."""
    config = context.profile.base_training
    if config is None:
        raise PipelineError("this profile trains no base", remedy="use the profile sample, or set base_training")
    seed_everything(config.seed)
    base = tiny_base(config.seed)
    base.vae = single_group(base.vae, config.seed)
    start_from_averages(base.vae)
    # velocity: an error in predicted noise is multiplied by sigma / alpha (14 at the last step) in the clean estimate,
    # which a network this small and briefly trained cannot afford
    base.noise_scheduler = DDPMScheduler.from_config(base.noise_scheduler.config, prediction_type="v_prediction")
    catalog = read_catalog(context.settings.catalog_path)
    photos = PhotoStore(split_rows(catalog, "train"), context.settings, config.resolution)
    held_out_rows = split_rows(catalog, "validation").iloc[:_MAX_VALIDATION]
    held_out = PhotoStore(held_out_rows, context.settings, config.resolution) if len(held_out_rows) else None
    bald = context.profile.processing.bald

    vae_task = VaeTask(base.vae, photos, held_out, bald, config.seed)
    vae_result = context.loop(vae_task, _loop(config.vae_steps, _VAE_BATCH, config.seed))
    scale_latents(base.vae, photos)

    latents = InpaintingLatents(base.vae, photos, bald, config.seed)
    check = None if held_out is None else InpaintingLatents(base.vae, held_out, bald, config.seed + 1)
    unet_result = context.loop(UnetTask(base, latents, check), _loop(config.unet_steps, _UNET_BATCH, config.seed))

    metrics = _both("vae", vae_result) | _both("unet", unet_result) | {"images": float(len(photos))}
    metrics["scaling_factor"] = float(base.vae.config.scaling_factor)

    def save(folder: Path) -> None:
        base.vae.save_pretrained(folder / STAND_IN_BASE / "vae")
        base.unet.save_pretrained(folder / STAND_IN_BASE / "unet")
        base.noise_scheduler.save_pretrained(folder / STAND_IN_BASE / "scheduler")
        card = {"vae_steps": config.vae_steps, "unet_steps": config.unet_steps, "seed": config.seed, "metrics": metrics}
        write_json(folder / f"{STAND_IN_BASE}.json", card | {"resolution": config.resolution})

    notes = {} if held_out is not None else {"validation": "no held-out photo"}
    return Finished(save, metrics, notes, vae_result.pictures)


def _loop(steps: int, batch: int, seed: int) -> LoopConfig:
    return LoopConfig(
        steps=steps,
        batch_size=batch,
        checkpoint_every=max(100, steps // 3),
        validate_every=steps,
        ema_decay=0.98,
        weight_decay=1e-3,
        gradient_norm_every=0,
        seed=seed,
    )


def _both(part: str, result: LoopResult) -> dict[str, float]:
    start = {f"{part}_{name}_start": value for name, value in result.start.items()}
    return start | {f"{part}_{name}_end": value for name, value in result.end.items()}


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
        if u[0] > 0.8:
            image = self._bald_image(draw.index, sample)
        elif u[0] > 0.6:
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
            self._bald[index] = make_bald(sample.image, sample.hair_mask, sample.face_mask, self.bald)[0]
        return self._bald[index]


class _Autoencoder(nn.Module):
    """Encode, sample the posterior with given noise, decode; so that one forward call is what Accelerate wraps."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist
        z = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        return self.vae.decode(z.contiguous(memory_format=torch.channels_last)).sample, posterior.kl() / images[
            0
        ].numel()


class VaeTask(Task):
    """Absolute error of pixels and of their differences (edges: strands), doubled in the hair, and a small KL term."""

    def __init__(
        self, vae: AutoencoderKL, photos: PhotoStore, held_out: PhotoStore | None, bald: BaldConfig, seed: int
    ) -> None:
        self.data = VaeImages(photos, bald, seed, train=True)
        super().__init__("vae", _Autoencoder(vae), self.data)
        self.held_out = None if held_out is None else VaeImages(held_out, bald, seed, train=False)
        self.seed = seed
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.channels = int(vae.config.latent_channels)

    def batches(self, config: LoopConfig) -> Batches:
        return StreamBatches(len(self.data), config.batch_size, config.seed)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": VAE_LEARNING_RATE}]

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
        batch = default_collate([data[Draw(i, i)] for i in range(min(6, len(data)))])
        output, _ = self.network(batch["image"].to(self.device), None)
        rows = [[to_image(a), to_image(b)] for a, b in zip(batch["image"], output, strict=True)]
        return [
            write_picture(folder / "reconstructions.jpg", picture_grid(list(map(list, zip(*rows, strict=True))), 112))
        ]


def _psnr(error: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error on a scale of 0 to 1."""
    return float(-10 * error.mean().clamp(min=1e-10).log10())


@torch.no_grad()
def scale_latents(vae: AutoencoderKL, photos: PhotoStore) -> None:
    """Set the VAE's scaling factor so that scaled latents have standard deviation 1 (Rombach et al. 2022)."""
    vae.register_to_config(scaling_factor=1.0)
    device = next(vae.parameters()).device
    count = min(64, len(photos))
    images = torch.stack([to_tensor(photos[int(i)].image) for i in np.linspace(0, len(photos) - 1, count)])
    latents = torch.cat([encode(vae, part.to(device)) for part in images.split(16)])
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 6))


class InpaintingLatents(Dataset[Batch]):
    """Cached latents of photos with masks of three kinds: the hair, a random growth of it, a random brush or box.

    The hole is filled as bald images are, or gray, so that the base knows both.
    """

    @torch.no_grad()
    def __init__(self, vae: AutoencoderKL, photos: PhotoStore, bald: BaldConfig, seed: int) -> None:
        self.seed = seed
        device = next(vae.parameters()).device
        latents, masked, masks, hair = [], [], [], []
        for index in tqdm(range(len(photos)), desc="base latents", unit="image", mininterval=1.0):
            sample = photos[index]
            holes, filled = _holes(sample, bald, seed)
            batch = torch.stack([to_tensor(image) for image in (sample.image, *filled)]).to(device)
            encoded = encode(vae, batch).cpu()
            size = encoded.shape[-2:]
            latents.append(encoded[0])
            masked.append(encoded[1:])
            masks.append(resize_mask(torch.from_numpy(np.stack(holes))[:, None], size, "any"))
            hair.append(resize_mask(torch.from_numpy(sample.hair_mask)[None, None], size)[0])
        self.latents, self.masked, self.masks, self.hair = map(torch.stack, (latents, masked, masks, hair))

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, draw: Draw) -> Batch:
        chance = generator(self.seed, 10, draw.position)
        variant = int(torch.randint(_VARIANTS, (), generator=chance))
        share = (draw.position * 0.6180339887498949) % 1
        return {
            "latents": self.latents[draw.index],
            "masked_latents": self.masked[draw.index, variant],
            "mask": self.masks[draw.index, variant],
            "hair": self.hair[draw.index],
            "noise": torch.randn(self.latents.shape[1:], generator=chance),
            "t": torch.tensor(int(share * 1000)),
        }


def _holes(sample: Sample, bald: BaldConfig, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    number = int(hash_bytes(sample.image_id, str(seed))[:8], 16)
    filled, hole = make_bald(sample.image, sample.hair_mask, sample.face_mask, bald)
    varied = vary_mask(sample.hair_mask, sample.face_mask, number)
    brush = random_hole(sample.image.shape[0], number)
    grays = [np.where(mask[..., None], np.uint8(BACKGROUND), sample.image) for mask in (varied, brush)]
    return [hole, varied, brush], [filled, *grays]


def random_hole(side: int, seed: int) -> np.ndarray:
    """A random box or brush stroke, (side, side) bool, covering part of the image."""
    random = np.random.default_rng([seed, 0x686F6C65])
    hole = np.zeros((side, side), np.uint8)
    if random.random() < 0.5:
        x, y = random.integers(0, side * 2 // 3, 2)
        width, height = random.integers(side // 6, side // 2, 2)
        hole[y : y + height, x : x + width] = 1
    else:
        points = random.integers(0, side, (int(random.integers(3, 8)), 1, 2)).astype(np.int32)
        cv2.polylines(hole, [points], False, 1, thickness=int(random.integers(side // 16, side // 6)))
    return hole.astype(bool)


class UnetTask(Task):
    """Inpainting diffusion over the whole image, without any condition (the null tokens)."""

    def __init__(self, base: Base, data: InpaintingLatents, held_out: InpaintingLatents | None) -> None:
        super().__init__("unet", base.unet, data)
        self.base = base
        self.data = data
        self.held_out = held_out
        self.alphas = base.noise_scheduler.alphas_cumprod
        self.kind: str = base.noise_scheduler.config.prediction_type

    def batches(self, config: LoopConfig) -> Batches:
        return StreamBatches(len(self.data), config.batch_size, config.seed)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": UNET_LEARNING_RATE}]

    def losses(self, batch: Batch, step: int) -> StepLosses:
        del step
        return StepLosses({"l2": F.mse_loss(*self._prediction(self.prepared, batch))})

    def _prediction(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        clean, noise, t = batch["latents"], batch["noise"], batch["t"]
        noisy = add_noise(clean, noise, t, self.alphas)
        tokens = self.base.null_tokens.to(clean.device).expand(len(clean), -1, -1)
        inputs = torch.cat([noisy, batch["mask"], batch["masked_latents"]], 1)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        prediction = network(inputs, t, encoder_hidden_states=tokens, return_dict=False)[0].float()
        return prediction, target(self.kind, clean, noise, t, self.alphas)

    def validate(self, step: int) -> dict[str, float]:
        del step
        if self.held_out is None:
            return {}
        values, hair = [], []
        for batch in in_batches(self.held_out, len(self.held_out), default_collate, 32):
            prediction, wanted = self._prediction(
                self.network, {name: value.to(self.device) for name, value in batch.items()}
            )
            error = (prediction - wanted).square().cpu()
            values.append(error.mean((1, 2, 3)))
            hair.append((error * batch["hair"]).sum((1, 2, 3)) / (4 * batch["hair"].sum((1, 2, 3)).clamp(min=1e-3)))
        return {"l2": float(torch.cat(values).mean()), "hair_l2": float(torch.cat(hair).mean())}
