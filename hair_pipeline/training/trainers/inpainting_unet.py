"""The UNet of the stand-in base: inpainting of people, told the hair's attributes as Stable Diffusion is told a prompt.

Belongs here: its samples, its task and measured quality. Does not belong here: the VAE (`trainers.inpainting_vae`), the
tokens (`models.attribute_tokens`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from hair_pipeline.files import atomic_path, hash_bytes
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.samples import Sample
from hair_pipeline.losses.predictions import add_noise, target
from hair_pipeline.models.attribute_tokens import UNKNOWN, AttributeTokens, attribute_classes
from hair_pipeline.models.base import decode, encode, tiny_base
from hair_pipeline.models.gpus import best_device
from hair_pipeline.models.masks import resize_mask
from hair_pipeline.models.weights import ATTRIBUTE_TOKENS, STAND_IN_BASE, STAND_IN_VAE
from hair_pipeline.processing.bald import make_bald, vary_mask
from hair_pipeline.processing.fringe import with_forehead
from hair_pipeline.profile import BaldConfig
from hair_pipeline.training.context import Context, Finished, base_training, network_loop, seed_everything
from hair_pipeline.training.images import BACKGROUND, to_image, to_tensor
from hair_pipeline.training.photos import PhotoStore, in_batches, split_rows
from hair_pipeline.training.pictures import picture_grid, write_picture
from hair_pipeline.training.runs import current
from hair_pipeline.training.sampler import Batches, Draw, StreamBatches, generator
from hair_pipeline.training.task import Batch, LoopConfig, StepLosses, Task
from hair_pipeline.training.trainers.inpainting_vae import spread
from hair_pipeline.training.validation import sample as sample_latents

_DROP_ALL, _DROP_ONE = 0.1, 0.1
"""Probability that a sample loses all of its attributes, and each single one."""
_KNOWN_WEIGHT = 0.25
"""Weight of the loss where nothing is repainted: there the answer stands in the input."""
_MAX_VALIDATION = 64


def run(context: Context) -> Finished:
    """Train the UNet and the attribute tokens on cached latents."""
    config = base_training(context)
    settings = context.settings
    seed_everything(config.seed)
    base = tiny_base(config.seed)
    vae = AutoencoderKL.from_pretrained(current("inpainting-vae", settings).final_dir / STAND_IN_VAE).eval()
    catalog = read_catalog(settings.catalog_path)
    bald, seed = context.profile.processing.bald, config.seed
    data = []
    for split, most in (("train", None), ("validation", _MAX_VALIDATION)):
        rows = split_rows(catalog, split)
        rows = rows if most is None else spread(rows, most)
        cache = context.run_dir / f"{split}_latents.safetensors"
        if not cache.exists() and len(rows):
            cache_latents(vae, PhotoStore(rows, settings, config.resolution), bald, seed, cache, flip=most is None)
        data.append(InpaintingLatents(load_file(cache), seed, train=most is None) if len(rows) else None)
    train, held_out = data
    assert train is not None
    tokens = AttributeTokens(base.unet.config.cross_attention_dim)
    model = Prompted(base.unet, tokens)
    task = UnetTask(model, base.noise_scheduler, vae, train, held_out, config.unet.learning_rate)
    result = context.loop(task, network_loop(config.unet, seed))
    metrics = {f"{name}_start": value for name, value in result.start.items()} | result.end
    metrics |= {"samples": float(len(train)), "seconds": result.seconds}

    def save(folder: Path) -> None:
        vae.save_pretrained(folder / STAND_IN_BASE / "vae")
        model.unet.save_pretrained(folder / STAND_IN_BASE / "unet")
        base.noise_scheduler.save_pretrained(folder / STAND_IN_BASE / "scheduler")
        tokens.save_pretrained(folder / STAND_IN_BASE / ATTRIBUTE_TOKENS)

    notes = {} if held_out is not None else {"validation": "no held-out photo"}
    return Finished(save, metrics, notes, result.pictures)


class Prompted(nn.Module):
    """A UNet behind attribute tokens; one forward call, as Accelerate wraps it."""

    def __init__(self, unet: UNet2DConditionModel, tokens: AttributeTokens) -> None:
        super().__init__()
        self.unet = unet
        self.tokens = tokens

    def forward(self, noisy: Tensor, t: Tensor, mask: Tensor, masked_latents: Tensor, classes: Tensor) -> Tensor:
        """(B, C, h, w) noisy latents and their conditions -> (B, C, h, w) prediction."""
        inputs = torch.cat([noisy, mask, masked_latents], 1).contiguous(memory_format=torch.channels_last)
        prediction: Tensor = self.unet(inputs, t, self.tokens(classes), return_dict=False)[0]
        return prediction


@torch.no_grad()
def cache_latents(
    vae: AutoencoderKL, photos: PhotoStore, bald: BaldConfig, seed: int, path: Path, *, flip: bool
) -> None:
    """Encode every photo, and its mirror image if `flip`, with four holes each, into one file.

    Tensors: latents (N, C, h, w) and masked (N, 4, C, h, w) float16, masks (N, 4, 1, h, w) uint8, hair (N, 1, h, w)
    float16, classes (N, A) int64.
    """
    device = best_device()
    vae.to(device)
    classes = attribute_classes(photos.rows)
    parts: dict[str, list[Tensor]] = {name: [] for name in ("latents", "masked", "masks", "hair", "classes")}
    for index in tqdm(range(len(photos)), desc="base latents", unit="image", mininterval=1.0):
        sample = photos[index]
        holes, filled = _holes(sample, bald, seed)
        pixels = torch.stack([to_tensor(image) for image in (sample.image, *filled)])
        masks = torch.from_numpy(np.stack(holes))[:, None].float()
        hair = torch.from_numpy(sample.hair_mask)[None, None].float()
        for mirrored in (False, True)[: 1 + flip]:
            if mirrored:
                pixels, masks, hair = pixels.flip(-1), masks.flip(-1), hair.flip(-1)
            encoded = encode(vae, pixels.to(device)).cpu()
            size = encoded.shape[-2:]
            parts["latents"].append(encoded[0].half())
            parts["masked"].append(encoded[1:].half())
            parts["masks"].append(resize_mask(masks, size, "any").to(torch.uint8))
            parts["hair"].append(resize_mask(hair, size)[0].half())
            parts["classes"].append(classes[index])
    with atomic_path(path) as temporary:
        save_file({name: torch.stack(rows).contiguous() for name, rows in parts.items()}, temporary)


def _holes(sample: Sample, bald: BaldConfig, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Four holes and the photo with each of them filled.

    The hair as bald images have it; a random growth of it; hair and forehead, as for another person's style; a random
    box or brush stroke, filled with gray.
    """
    number = int(hash_bytes(sample.image_id, str(seed))[:8], 16)
    hair, face = sample.hair_mask, sample.face_mask
    varied = vary_mask(hair, face, number)
    removed = [
        make_bald(sample.image, *masks, bald, window=sample.window)
        for masks in ((hair, face), (varied, face), with_forehead(hair, face, sample.box))
    ]
    brush = random_hole(sample.image.shape[0], number)
    gray = np.where(brush[..., None], np.uint8(BACKGROUND), sample.image)
    return [*(hole for _, hole in removed), brush], [*(image for image, _ in removed), gray]


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


class InpaintingLatents(Dataset[Batch]):
    """Cached latents with a random hole, noise, timestep and some attributes dropped; or, held out, hole 2 and all."""

    def __init__(self, tensors: dict[str, Tensor], seed: int, *, train: bool) -> None:
        self.tensors = tensors
        self.seed = seed
        self.train = train

    def __len__(self) -> int:
        return len(self.tensors["latents"])

    def __getitem__(self, draw: Draw) -> Batch:
        chance = generator(self.seed, 10, draw.position)
        tensors, index = self.tensors, draw.index
        latents, classes = tensors["latents"][index].float(), tensors["classes"][index]
        hole = int(torch.randint(tensors["masked"].shape[1], (), generator=chance)) if self.train else 2
        if self.train:
            u = torch.rand(1 + len(classes), generator=chance)
            dropped = (u[1:] < _DROP_ONE) | (u[0] < _DROP_ALL)
            classes = torch.where(dropped, UNKNOWN, classes)
        share = (draw.position * 0.6180339887498949) % 1
        return {
            "latents": latents,
            "masked_latents": tensors["masked"][index, hole].float(),
            "mask": tensors["masks"][index, hole].float(),
            "hair": tensors["hair"][index].float(),
            "face": torch.zeros_like(tensors["hair"][index]).float(),
            "classes": classes,
            "noise": torch.randn(latents.shape, generator=chance),
            "t": torch.tensor(int(share * 1000)),
        }


class UnetTask(Task):
    """Inpainting diffusion over the whole image, mostly for what is repainted."""

    def __init__(
        self,
        model: Prompted,
        scheduler: DDPMScheduler,
        vae: AutoencoderKL,
        data: InpaintingLatents,
        held_out: InpaintingLatents | None,
        learning_rate: float,
    ) -> None:
        super().__init__("unet", model, data)
        self.scheduler = scheduler
        self.vae = vae
        self.data = data
        self.held_out = held_out
        self.learning_rate = learning_rate
        self.alphas = scheduler.alphas_cumprod
        self.kind: str = scheduler.config.prediction_type

    def batches(self, config: LoopConfig) -> Batches:
        return StreamBatches(len(self.data), config.batch_size, config.seed)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": self.learning_rate}]

    def move(self, device: torch.device) -> None:
        super().move(device)
        self.vae.to(device)
        self.alphas = self.alphas.to(device)

    def predict(self, noisy: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """The network's prediction under the batch's conditions."""
        prediction: Tensor = self.prepared(noisy, t, batch["mask"], batch["masked_latents"], batch["classes"])
        return prediction.float()

    def _error(self, batch: Batch) -> Tensor:
        """Squared error of the prediction, (B, C, h, w)."""
        clean, noise, t = batch["latents"], batch["noise"], batch["t"]
        prediction = self.predict(add_noise(clean, noise, t, self.alphas), t, batch)
        return (prediction - target(self.kind, clean, noise, t, self.alphas)).square()

    def losses(self, batch: Batch, step: int) -> StepLosses:
        del step
        weight = _KNOWN_WEIGHT + (1 - _KNOWN_WEIGHT) * batch["mask"]
        return StepLosses({"l2": (self._error(batch) * weight).mean()})

    def validate(self, step: int) -> dict[str, float]:
        """Squared error in the hair, with the attributes and without any."""
        del step
        if self.held_out is None:
            return {}
        errors: dict[str, list[Tensor]] = {"hair_l2": [], "hair_l2_unprompted": []}
        for batch in in_batches(self.held_out, len(self.held_out), default_collate, 16):
            batch = {name: value.to(self.device) for name, value in batch.items()}
            hair = batch["hair"]
            for name in errors:
                if name == "hair_l2_unprompted":
                    batch["classes"] = torch.full_like(batch["classes"], UNKNOWN)
                error = (self._error(batch) * hair).sum((1, 2, 3)) / (4 * hair.sum((1, 2, 3)).clamp(min=1e-3))
                errors[name].append(error.cpu())
        return {name: float(torch.cat(values).mean()) for name, values in errors.items()}

    def pictures(self, folder: Path) -> list[Path]:
        """Held-out people: photo, hole, own attributes, none, and straight, wavy and curly hair instead."""
        if self.held_out is None:
            return []
        places = np.linspace(0, len(self.held_out) - 1, min(6, len(self.held_out))).astype(int)
        batch = default_collate([self.held_out[Draw(int(i), int(i))] for i in places])
        batch = {name: value.to(self.device) for name, value in batch.items()}
        columns = [decode(self.vae, batch["latents"]), decode(self.vae, batch["masked_latents"])]
        own = batch["classes"]
        for curl in (None, UNKNOWN, 0, 1, 2):
            classes = own.clone()
            if curl == UNKNOWN:
                classes[:] = UNKNOWN
            elif curl is not None:
                classes[:, 0] = curl
            columns.append(decode(self.vae, sample_latents(self.predict, batch | {"classes": classes}, self.scheduler)))
        rows = [[to_image(column[i]) for column in columns] for i in range(len(places))]
        return [write_picture(folder / "held_out.jpg", picture_grid(rows, 112))]
