"""The losses on decoded images: identity, LPIPS, Gram and style, each on as little of the image as it needs.

Belongs here: what is decoded for which loss, and at which timesteps. Does not belong here: the formulas (`losses`) and
the diffusion loss (`stages`).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from hair_pipeline.losses.gram import patch_gram_loss
from hair_pipeline.losses.identity import identity_loss
from hair_pipeline.losses.lpips import masked_lpips
from hair_pipeline.losses.schedule import pixel_gate
from hair_pipeline.losses.style import UNKNOWN, style_loss
from hair_pipeline.models.base import decode, latent_factor
from hair_pipeline.models.perceptual import PerceptualNet
from hair_pipeline.models.recogniser import FaceRecogniser
from hair_pipeline.models.style_classifier import StyleClassifier
from hair_pipeline.profile import LossesConfig
from hair_pipeline.training.data import face_lock
from hair_pipeline.training.task import Batch
from hair_pipeline.training.windows import Window, face_window, hair_window

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

    def serve(self, term: str) -> bool:
        """Whether the network behind a pixel loss is there."""
        judge = {"identity": self.recogniser, "style": self.classifier}.get(term, self.perceptual)
        return judge is not None


@dataclass
class PixelLosses:
    """The pixel losses of a stage.

    The clean estimate takes the sample's latents in the locked face before it is decoded, as in sampling. Only the
    identity loss looks at the estimate without that: after it, the face would be the original's anyway.

    Decoding costs several times what the UNet costs. So identity is computed on a window around the face, LPIPS and
    Gram on one around the hair (from the same feature maps), and the style classifier sees that window in its place in
    the original. The original in a window is decoded from the same window, so that what a decoder does at a border is
    on both sides.

    Args:
        vae: frozen.
        judges: the networks.
        config: weights and gates.
        timesteps: T of the noise schedule.
    """

    vae: AutoencoderKL
    judges: Judges
    config: LossesConfig
    timesteps: int

    def gates(self, t: Tensor, weights: dict[str, float]) -> dict[str, Tensor]:
        """Per loss that is on: each sample's weight (B,) by its timestep."""
        return {
            name: pixel_gate(t, self.timesteps, getattr(self.config, name).max_t or self.config.pixel_max_t)
            for name in PIXEL_TERMS
            if weights[name] > 0 and self.judges.serve(name)
        }

    def chosen(self, gates: dict[str, Tensor]) -> Tensor:
        """Rows of the batch that are decoded: at most `pixel_batch` of those that any loss looks at."""
        if not gates:
            return torch.zeros(0, dtype=torch.long)
        looked_at = torch.stack(list(gates.values())).amax(0)
        return torch.nonzero(looked_at).flatten()[: self.config.pixel_batch]

    def __call__(self, estimate: Tensor, batch: Batch, rows: Tensor, gates: dict[str, Tensor]) -> dict[str, Tensor]:
        """The raw value of each loss, averaged over the samples it applies to; without those that apply to none.

        Args:
            estimate: (n, C, h, w) clean latents of the chosen rows, with gradient.
            batch: the whole batch.
            rows: (n,).
            gates: of the whole batch.
        """
        found: dict[str, list[Tensor]] = {}
        for place, row in enumerate(rows.tolist()):
            sample = {name: value[row : row + 1] for name, value in batch.items()}
            gate = {name: value[row : row + 1] for name, value in gates.items() if float(value[row]) > 0}
            for name, value in self._one(estimate[place : place + 1], sample, gate).items():
                if value is not None:
                    found.setdefault(name, []).append(value)
        return {name: torch.stack(found[name]).mean() for name in PIXEL_TERMS if name in found}

    def _one(self, estimate: Tensor, sample: Batch, gate: dict[str, Tensor]) -> dict[str, Tensor | None]:
        values: dict[str, Tensor | None] = {}
        if "identity" in gate and bool(sample["reliable"]):
            values["identity"] = self._identity(estimate, sample, gate["identity"])
        if gate.keys() - {"identity"}:
            values |= self._hair(torch.where(face_lock(sample), sample["latents"], estimate), sample, gate)
        return values

    def _identity(self, estimate: Tensor, sample: Batch, gate: Tensor) -> Tensor | None:
        recogniser, factor = self.judges.recogniser, latent_factor(self.vae)
        assert recogniser is not None
        window = face_window(sample["box"][0], estimate.shape[-2:], factor)
        box = window.move_box(sample["box"], factor)
        with torch.no_grad():
            reference = recogniser.embed(self._decode(window.cells(sample["latents"])).clamp(-1, 1), box)
        output = self._decode(window.cells(estimate))
        return identity_loss(recogniser, output, reference, box, sample["reliable"], gate)

    def _hair(self, blended: Tensor, sample: Batch, gate: dict[str, Tensor]) -> dict[str, Tensor | None]:
        factor, judges = latent_factor(self.vae), self.judges
        window = hair_window(sample["hair"][0, 0], self.config.pixel_crop, int(sample["t"]))
        labelled = bool((sample["curl"] != UNKNOWN) | (sample["bangs"] != UNKNOWN))
        if window is None or not (labelled or gate.keys() & {"lpips", "gram"}):
            return {}
        output = self._decode(window.cells(blended))
        hair = window.pixels(sample["hair_pixels"], factor)
        values: dict[str, Tensor | None] = {}
        if gate.keys() & {"lpips", "gram"}:
            assert judges.perceptual is not None
            with torch.no_grad():
                original = self._decode(window.cells(sample["latents"])).clamp(-1, 1)
                original_maps = judges.perceptual.masked_features(original, hair)
            maps = (judges.perceptual.masked_features(output, hair), original_maps)
            if "lpips" in gate:
                values["lpips"] = masked_lpips(judges.perceptual, output, original, hair, gate["lpips"], maps)
            if "gram" in gate:
                values["gram"] = patch_gram_loss(
                    judges.perceptual, output, hair, original, hair, sample_weight=gate["gram"], maps=maps
                )
        if "style" in gate and labelled:
            assert judges.classifier is not None
            whole = self._in_its_photo(output, window, sample["latents"])
            values["style"] = style_loss(judges.classifier, whole, sample["curl"], sample["bangs"], gate["style"])
        return values

    def _in_its_photo(self, output: Tensor, window: Window, latents: Tensor) -> Tensor:
        """The decoded window in the rest of the original, which carries no gradient: what the classifier looks at.

        The rest is decoded no finer than the classifier sees it: shrunk latents decode to a shrunk photo, near enough
        for surroundings.
        """
        assert self.judges.classifier is not None
        factor, cells = latent_factor(self.vae), latents.shape[-1]
        if (window.height, window.width) == tuple(latents.shape[-2:]):
            return output
        shrink = max(1, cells * factor // int(self.judges.classifier.config["resolution"]))
        while cells % shrink or any(value % shrink for value in astuple(window)):
            shrink -= 1
        with torch.no_grad():
            rest = self._decode(F.avg_pool2d(latents, shrink) if shrink > 1 else latents).clamp(-1, 1)
        small = F.avg_pool2d(output, shrink) if shrink > 1 else output
        return Window(*(value // shrink for value in astuple(window))).paste(small, rest, factor)

    def _decode(self, latents: Tensor) -> Tensor:
        return decode(self.vae, latents).float()
