"""The step of Stage 1 and Stage 2: diffusion loss in the hair, pixel losses on decoded estimates, face locked.

Belongs here: how the losses of the specification are put together and gated. Does not belong here: their formulas
(`losses`), the samples (`data`) and where a stage starts from (`trainers.stage1`, `trainers.stage2`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch import Tensor

from hair_pipeline.losses.anchor import anchor
from hair_pipeline.losses.gram import patch_gram_loss
from hair_pipeline.losses.identity import identity_loss
from hair_pipeline.losses.lpips import masked_lpips
from hair_pipeline.losses.mask_l2 import mask_l2
from hair_pipeline.losses.predictions import add_noise, target, to_clean
from hair_pipeline.losses.schedule import min_snr_weight, pixel_gate, ramp
from hair_pipeline.losses.style import style_loss
from hair_pipeline.models.base import decode
from hair_pipeline.models.inpainter import HairInpainter
from hair_pipeline.models.perceptual import PerceptualNet
from hair_pipeline.models.recogniser import FaceRecogniser
from hair_pipeline.models.style_classifier import StyleClassifier
from hair_pipeline.profile import StageConfig
from hair_pipeline.training.data import StageDataset
from hair_pipeline.training.pictures import picture_grid, write_picture
from hair_pipeline.training.sampler import Batches, MixedBatches
from hair_pipeline.training.task import Batch, LoopConfig, StepLosses, Task
from hair_pipeline.training.validation import Sampled, face_lock, hair_l2, sample_held_out

PIXEL_TERMS = ("identity", "lpips", "gram", "style")


@dataclass
class Judges:
    """The frozen networks behind the pixel losses; None where a loss is off or its network is not available."""

    recogniser: FaceRecogniser | None = None
    perceptual: PerceptualNet | None = None
    classifier: StyleClassifier | None = None

    def modules(self) -> list[torch.nn.Module]:
        """Those that exist."""
        return [module for module in (self.recogniser, self.perceptual, self.classifier) if module is not None]


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
    ) -> None:
        super().__init__(name, model, data)
        self.model = model
        self.vae = vae.requires_grad_(False).eval()
        self.scheduler = scheduler
        self.alphas = scheduler.alphas_cumprod
        self.kind: str = scheduler.config.prediction_type
        self.config = config
        self.data = data
        self.images = images
        self.held_out = held_out
        self.judges = judges
        self.sampled: Sampled | None = None
        if config.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
            vae.enable_gradient_checkpointing()

    def batches(self, config: LoopConfig) -> Batches:
        patches = len(self.data) - self.images
        return MixedBatches(self.images, patches, self.config.patch_fraction, config.batch_size, config.seed)

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
            batch["face"],
            style_present=batch["style_present"],
            identity_present=batch["identity_present"],
        )
        return prediction

    def losses(self, batch: Batch, step: int) -> StepLosses:
        terms = self.config.losses
        weights = {
            name: getattr(terms, name).weight * ramp(step, getattr(terms, name).ramp_steps)
            for name in ("mask_l2", "anchor", "context", *PIXEL_TERMS)
        }
        clean, noise, t = batch["latents"], batch["noise"], batch["t"]
        noisy = add_noise(clean, noise, t, self.alphas)
        prediction = self.predict(noisy, t, batch).float()

        raw: dict[str, Tensor] = {}
        wanted = target(self.kind, clean, noise, t, self.alphas)
        snr = None
        if terms.min_snr_gamma is not None:
            snr = min_snr_weight(self.alphas, t, terms.min_snr_gamma, self.kind)
        unlocked = 1 - batch["face"]
        if terms.mask_l2.weight > 0:
            raw["mask_l2"] = mask_l2(prediction, wanted, batch["mask"] * unlocked, snr)
        if terms.context.weight > 0:
            raw["context"] = mask_l2(prediction, wanted, (1 - batch["mask"]) * unlocked, snr)
        if terms.anchor.weight > 0:
            raw["anchor"] = anchor(
                prediction, self.model.base_prediction(noisy, t, batch["mask"], batch["masked_latents"]), batch["mask"]
            )
        numbers: dict[str, float] = {}
        if step % terms.pixel_every == 0:
            gate = pixel_gate(t, self.scheduler.config.num_train_timesteps, terms.pixel_max_t)
            rows = torch.nonzero(gate).flatten()[: terms.pixel_batch]
            numbers["pixel_samples"] = float(len(rows))
            if len(rows) and any(weights[name] > 0 for name in PIXEL_TERMS):
                raw |= self._pixel_losses(prediction, noisy, batch, rows, gate[rows])
        return StepLosses(raw, {name: weights[name] for name in raw}, numbers, prediction)

    def _pixel_losses(
        self, prediction: Tensor, noisy: Tensor, batch: Batch, rows: Tensor, gate: Tensor
    ) -> dict[str, Tensor]:
        """The losses on decoded images, for the chosen rows of a batch.

        The clean estimate takes the original's latents in the locked face before it is decoded, as in sampling. Only
        the identity loss looks at the estimate without that: after it, the face would be the original's anyway.
        """
        terms, judges = self.config.losses, self.judges
        part = {name: value[rows] for name, value in batch.items()}
        estimate = to_clean(self.kind, prediction[rows], noisy[rows], part["t"], self.alphas)
        with torch.no_grad():
            original = decode(self.vae, part["latents"]).float().clamp(-1, 1)
        found: dict[str, Tensor | None] = {}
        if terms.identity.weight > 0 and judges.recogniser is not None and bool(part["reliable"].any()):
            faces = torch.nonzero(part["reliable"]).flatten()
            with torch.no_grad():
                reference = judges.recogniser.embed(original[faces], part["box"][faces])
            found["identity"] = identity_loss(
                judges.recogniser,
                decode(self.vae, estimate[faces]).float(),
                reference,
                part["box"][faces],
                part["reliable"][faces],
                gate[faces],
            )
        blended = torch.where(face_lock(part), part["latents"], estimate)
        others = terms.lpips.weight, terms.gram.weight, terms.style.weight
        if not any(weight > 0 for weight in others):
            return {name: value for name, value in found.items() if value is not None}
        output = decode(self.vae, blended).float()
        hair = part["hair_pixels"]
        if judges.perceptual is not None:
            if terms.lpips.weight > 0:
                found["lpips"] = masked_lpips(judges.perceptual, output, original, hair, gate)
            if terms.gram.weight > 0:
                found["gram"] = patch_gram_loss(judges.perceptual, output, hair, original, hair, sample_weight=gate)
        if judges.classifier is not None and terms.style.weight > 0:
            found["style"] = style_loss(judges.classifier, output, part["curl"], part["bangs"], gate)
        return {name: value for name, value in found.items() if value is not None}

    def validate(self, step: int) -> dict[str, float]:
        """`hair_l2`: the prediction's error in the hair; `hair_lpips`: of sampled images, with the loss's trunk."""
        del step
        if not len(self.held_out):
            return {}
        error = hair_l2(self.predict, self.held_out, self.scheduler, self.device)
        self.sampled = sample_held_out(
            self.predict, self.held_out, self.scheduler, self.vae, self.judges.perceptual, self.device
        )
        numbers = {"hair_l2": error, "hair_lpips": self.sampled.hair_lpips}
        return {name: value for name, value in numbers.items() if value is not None}

    def pictures(self, folder: Path) -> list[Path]:
        """Held-out images: original, bald image, what `validate` sampled."""
        if self.sampled is None:
            return []
        return [write_picture(folder / "held_out.jpg", picture_grid(self.sampled.rows, 112))]
