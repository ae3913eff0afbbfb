"""The step of Stage 1 and Stage 2: diffusion loss in the hair, pixel losses on decoded estimates, face locked.

Belongs here: how the losses of the specification are put together. Does not belong here: their formulas (`losses`),
what is decoded for them (`pixel_losses`), the samples (`data`) and where a stage starts from (`trainers`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch import Tensor

from hair_pipeline.losses.anchor import anchor
from hair_pipeline.losses.mask_l2 import mask_l2
from hair_pipeline.losses.predictions import add_noise, target, to_clean
from hair_pipeline.losses.schedule import min_snr_weight, ramp
from hair_pipeline.models.inpainter import HairInpainter
from hair_pipeline.profile import LossTerm, StageConfig
from hair_pipeline.training.data import StageDataset
from hair_pipeline.training.pictures import picture_grid, write_picture
from hair_pipeline.training.pixel_losses import PIXEL_TERMS, Judges, PixelLosses
from hair_pipeline.training.sampler import Batches, MixedBatches
from hair_pipeline.training.task import Batch, LoopConfig, StepLosses, Task
from hair_pipeline.training.validation import Sampled, hair_l2, sample_held_out

TERMS = ("mask_l2", "anchor", "context", *PIXEL_TERMS)


class StageTask(Task):
    """One stage of the inpainting model.

    Args:
        name: "stage1" or "stage2".
        model: base and adapters; its trainable parameters are trained.
        vae: frozen, decodes for the pixel losses.
        scheduler: the base's noise schedule.
        config: the stage's values.
        data: training samples; the first `images` are whole images, the others patches.
        images: number of whole images in `data`.
        held_out: validation samples; may be empty.
        judges: networks of the pixel losses.
        first_lesson: what the model learns ahead of the first step; returns numbers about it.
    """

    def __init__(
        self,
        name: str,
        model: HairInpainter,
        vae: AutoencoderKL,
        scheduler: DDPMScheduler,
        config: StageConfig,
        data: StageDataset,
        images: int,
        held_out: StageDataset,
        judges: Judges,
        first_lesson: Callable[[HairInpainter], dict[str, float]] | None = None,
    ) -> None:
        super().__init__(name, model, data)
        self.model = model
        self.vae = vae.requires_grad_(False).eval()
        self.vae.enable_slicing()  # pictures of several images are decoded one by one
        self.scheduler = scheduler
        self.alphas = scheduler.alphas_cumprod
        self.kind: str = scheduler.config.prediction_type
        self.config = config
        self.data = data
        self.images = images
        self.held_out = held_out
        self.judges = judges
        self.first_lesson = first_lesson
        self.sampled: Sampled | None = None
        self.pixel_losses = PixelLosses(vae, judges, config.losses, int(scheduler.config.num_train_timesteps))
        if config.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
            vae.enable_gradient_checkpointing()

    def before_first_step(self) -> dict[str, float]:
        return {} if self.first_lesson is None else self.first_lesson(self.model)

    def batches(self, config: LoopConfig) -> Batches:
        patches, share = len(self.data) - self.images, self.config.patch_fraction
        return MixedBatches(self.images, patches, share, config.batch_size, config.seed, config.accumulation)

    def collate(self, samples: list[Batch]) -> Batch:
        """Samples to a batch; `turn` becomes a list, which stays on the host: reading it waits for no device."""
        batch = super().collate(samples)
        return batch | {"turn": batch["turn"].tolist()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.model.parameter_groups(self.config.learning_rate, self.config.learning_rate_deep)

    def move(self, device: torch.device) -> None:
        super().move(device)
        self.vae.to(device)
        if self.config.precision == "bf16" and device.type == "cuda":
            self.vae.to(torch.bfloat16)
        self.alphas = self.alphas.to(device)
        for judge in self.judges.modules():
            judge.to(device)

    def predict(self, noisy: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """The network's prediction for noised latents under the batch's conditions, (B, C, h, w)."""
        prediction: Tensor = self.prepared(
            noisy,
            t,
            batch["mask"],
            batch["masked_latents"],
            batch["style"],
            batch["identity"],
            batch["face"] if self.config.mask_identity else torch.ones_like(batch["face"]),
            style_present=batch["style_present"],
            identity_present=batch["identity_present"],
        )
        return prediction

    def losses(self, batch: Batch, step: int) -> StepLosses:
        terms = self.config.losses
        weights = {name: getattr(terms, name).weight * ramp(step, getattr(terms, name).ramp_steps) for name in TERMS}
        noisy = add_noise(batch["latents"], batch["noise"], batch["t"], self.alphas)
        prediction = self.predict(noisy, batch["t"], batch).float()

        raw = self._latent_losses(prediction, noisy, batch)
        numbers: dict[str, float] = {}
        if int(batch["turn"][0]) % terms.pixel_every == 0:
            gates = self.pixel_losses.gates(batch["t"], weights)
            rows = self.pixel_losses.chosen(gates)
            numbers["pixel_samples"] = float(len(rows))
            if len(rows):
                estimate = to_clean(self.kind, prediction[rows], noisy[rows], batch["t"][rows], self.alphas)
                raw |= self.pixel_losses(estimate, batch, rows, gates)
        return StepLosses(raw, {name: weights[name] for name in raw}, numbers, prediction)

    def _latent_losses(self, prediction: Tensor, noisy: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The diffusion loss in the hair, and what keeps the rest in place; never in the locked face."""
        terms, t = self.config.losses, batch["t"]
        wanted = target(self.kind, batch["latents"], batch["noise"], t, self.alphas)
        snr = None
        if terms.min_snr_gamma is not None:
            snr = min_snr_weight(self.alphas, t, terms.min_snr_gamma, self.kind)
        unlocked = 1 - batch["face"]
        raw: dict[str, Tensor] = {}
        for name, region in (("mask_l2", batch["mask"]), ("context", 1 - batch["mask"])):
            term = getattr(terms, name)
            if term.weight > 0:
                raw[name] = mask_l2(prediction, wanted, region * unlocked, self._gated(snr, t, term))
        if terms.anchor.weight > 0:
            base = self.model.base_prediction(noisy, t, batch["mask"], batch["masked_latents"])
            region = (1 - batch["mask"]) * unlocked
            raw["anchor"] = anchor(prediction, base, region, self._gated(None, t, terms.anchor))
        return raw

    def _gated(self, weight: Tensor | None, t: Tensor, term: LossTerm) -> Tensor | None:
        """The sample weights, 0 where a timestep is not below the term's gate."""
        if term.max_t is None:
            return weight
        gate = (t < term.max_t * self.pixel_losses.timesteps).float()
        return gate if weight is None else gate * weight

    def validate(self, step: int) -> dict[str, float]:
        """`hair_l2`: the prediction's error in the hair; `hair_lpips`: of sampled images, with the loss's trunk.

        With a stand-in for the trunk it is called `hair_lpips_stand_in`.
        """
        del step
        if not len(self.held_out):
            return {}
        error = hair_l2(self.predict, self.held_out, self.scheduler, self.device)
        self.sampled = sample_held_out(
            self.predict, self.held_out, self.scheduler, self.vae, self.judges.perceptual, self.device
        )
        perceptual = self.judges.perceptual
        lpips = "hair_lpips_stand_in" if perceptual is not None and perceptual.is_stand_in else "hair_lpips"
        numbers = {"hair_l2": error, lpips: self.sampled.hair_lpips}
        return {name: value for name, value in numbers.items() if value is not None}

    def pictures(self, folder: Path) -> list[Path]:
        """Held-out images: original, bald image, what `validate` sampled."""
        if self.sampled is None:
            return []
        return [write_picture(folder / "held_out.jpg", picture_grid(self.sampled.rows, 112))]
