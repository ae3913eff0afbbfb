"""Sampling: a photo with its masks, a style and an identity in, the photo with new hair out.

Belongs here: the denoising loop, guidance, latent blending of the face, compositing of the result.
Does not belong here: cropping of large photos (`inputs.head_crop`), training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.utils import BaseOutput
from torch import Tensor

from hair_pipeline.models import adapters
from hair_pipeline.models.base import Base, decode, encode, latent_factor
from hair_pipeline.models.inpainter import HairInpainter, predict
from hair_pipeline.models.masks import resize_mask
from hair_pipeline.models.style_projection import StyleProjection
from hair_pipeline.processing.bald import make_bald
from hair_pipeline.processing.compositing import paste_back
from hair_pipeline.profile import BaldConfig

SchedulerName = Literal["ddim", "dpm++"]
Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass
class HairInpaintOutput(BaseOutput):
    """The result of `HairInpaintPipeline`.

    Attributes:
        images: uint8 RGB at the inputs' size, after paste-back: identical to the input outside the feathered mask.
        raw: uint8 RGB at the inputs' size, before paste-back.
        finite: whether the networks gave numbers for every pixel; pictures of others show nothing.
    """

    images: list[np.ndarray]
    raw: list[np.ndarray]
    finite: list[bool]


class HairInpaintPipeline(DiffusionPipeline):
    """Redraw the hair of photos.

    Make one from a trained model (`from_inpainter`), from saved adapters (`from_adapters`), from a base alone
    (`from_base`, which ignores style and identity) or from a folder written by `save_pretrained`.

    Args:
        conditioned: False for a bare base: style and identity are ignored.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler | DPMSolverMultistepScheduler
    style_projection: StyleProjection
    model_cpu_offload_seq = "style_projection->unet->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler | DPMSolverMultistepScheduler,
        style_projection: StyleProjection,
        conditioned: bool = True,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler, style_projection=style_projection)
        self.register_to_config(conditioned=conditioned)

    @classmethod
    def from_inpainter(
        cls, inpainter: HairInpainter, base: Base, scheduler: SchedulerName = "ddim"
    ) -> HairInpaintPipeline:
        """A pipeline around a model, sharing its weights: it follows the model as that is trained."""
        return cls(base.vae, inpainter.unet, make_scheduler(base, scheduler), inpainter.style_projection)

    @classmethod
    def from_adapters(cls, base: Base, folder: Path, scheduler: SchedulerName = "ddim") -> HairInpaintPipeline:
        """A pipeline from a fresh base (its UNet is taken over) and a folder written by `HairInpainter.save_adapters`.

        Raises:
            PipelineError: the folder is incomplete, or its adapters belong to another base.
        """
        return cls.from_inpainter(HairInpainter.from_adapters(base, folder).eval(), base, scheduler)

    @classmethod
    def from_base(cls, base: Base, scheduler: SchedulerName = "ddim") -> HairInpaintPipeline:
        """The base without any adapter: what a new model is compared with while nothing is in production."""
        length, dim = base.null_tokens.shape[1:]
        projection = StyleProjection(1, dim, length, "replace", length)
        projection.start_from(base.null_tokens)
        return cls(base.vae, base.unet, make_scheduler(base, scheduler), projection, conditioned=False)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write the whole pipeline: LoRA merged into `unet/` (stock diffusers reads it), the IP-Adapter beside it."""
        own = self.unet
        self.unet = adapters.merged_unet(own)
        try:
            super().save_pretrained(save_directory, **options)
        finally:
            self.unet = own
        if adapters.has_ip_adapter(own):
            adapters.save_ip_adapter(own, Path(save_directory))

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> HairInpaintPipeline:
        """Read what `save_pretrained` wrote. Only local files are read, only safetensors."""
        pipeline: HairInpaintPipeline = super().from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, **options
        )
        if (Path(folder) / adapters.IP_ADAPTER_FILE).is_file():
            adapters.load_ip_adapter_state(pipeline.unet, adapters.read_ip_adapter(Path(folder)))
        pipeline.unet.eval().requires_grad_(False)
        return pipeline

    @torch.no_grad()
    def __call__(
        self,
        images: Sequence[np.ndarray],
        hair_masks: Sequence[np.ndarray],
        face_masks: Sequence[np.ndarray],
        style: Tensor | None,
        identity: Tensor | None,
        *,
        resolution: int,
        num_inference_steps: int = 30,
        guidance_scale: float = 2.0,
        generator: Generators = None,
        style_strength: float = 1.0,
        identity_strength: float = 1.0,
        style_present: Tensor | None = None,
        identity_present: Tensor | None = None,
        repaint_masks: Sequence[np.ndarray] | None = None,
        bald_images: Sequence[np.ndarray] | None = None,
        bald_config: BaldConfig | None = None,
        feather_px: int = 8,
        callback_on_step_end: Callable[[HairInpaintPipeline, int, Tensor, dict[str, Tensor]], Any] | None = None,
    ) -> HairInpaintOutput:
        """Redraw the hair inside the repaint masks. Several threads may call at once, without CPU offload.

        Args:
            images: B photos, uint8 RGB (S, S, 3); sizes may differ.
            hair_masks, face_masks: bool (S, S) of each photo.
            style: (B, S') style vectors, or None for no style.
            identity: (B, 512) identity embeddings, or None for no identity.
            resolution: side at which is generated, a multiple of the VAE's factor.
            guidance_scale: classifier-free guidance (Ho & Salimans 2022) between no condition and both; 1 is off. A
                latent cell is guided by the share of it that is repainted: on the face's rim it would cost likeness.
            generator: one generator, or one per sample; with one per sample, a sample's noise does not depend on
                the rest of the batch. Generators on the CPU give the same noise on every device.
            style_strength: 0 is no style, 1 the style as trained.
            identity_strength: multiplies the identity's influence.
            style_present, identity_present: (B,) bool, where only some samples have one.
            repaint_masks, bald_images: as `make_bald` gives them; made here when left out. Outside its repaint mask a
                bald image is taken to be the photo, so that the locked face is the photo's whoever removed the hair.
            bald_config: for `make_bald`.
            feather_px: width of the blend at the mask's edge, in the photos' pixels.
            callback_on_step_end: called with (pipeline, step, timestep, {"latents": (B, C, h, w)}) after each step.
        """
        if repaint_masks is None or bald_images is None:
            config = bald_config or BaldConfig()
            made = [make_bald(*sample, config) for sample in zip(images, hair_masks, face_masks, strict=True)]
            bald_images = [bald for bald, _ in made] if bald_images is None else bald_images
            repaint_masks = [mask for _, mask in made] if repaint_masks is None else repaint_masks

        samples = zip(images, bald_images, repaint_masks, strict=True)
        bald_images = [np.where(mask[..., None], bald, photo) for photo, bald, mask in samples]

        size = self._latent_size(resolution)
        device = self._execution_device  # asked for once: diffusers looks through every module of every network
        hole = self._masks(repaint_masks, resolution, device)
        repaint = resize_mask(hole, size, "any")
        face = self._masks(face_masks, resolution, device)
        locked = resize_mask(face * (1 - hole), size, "all") * (1 - repaint)
        with self._autocast(device):
            bald = encode(self.vae, self._pixels(bald_images, resolution, device)).float()
            conditions = self._conditions(
                len(images), style, identity, style_present, identity_present, style_strength, guidance_scale, device
            )
            latents = self._denoise(
                bald,
                repaint,
                locked,
                resize_mask(face, size) * identity_strength,
                resize_mask(hole, size),
                conditions,
                num_inference_steps,
                guidance_scale,
                self._noise(bald, generator),
                callback_on_step_end,
            )
            pixels = decode(self.vae, latents).float()
        self.maybe_free_model_hooks()
        raw = [_resize(image, photo.shape[:2]) for image, photo in zip(_to_uint8(pixels), images, strict=True)]
        # over the bald image, which is the photo outside the mask: over the photo, the old hair would show in the blend
        results = [
            paste_back(bald_image, image, mask, feather_px)
            for bald_image, image, mask in zip(bald_images, raw, repaint_masks, strict=True)
        ]
        return HairInpaintOutput(images=results, raw=raw, finite=pixels.isfinite().flatten(1).all(1).tolist())

    def _conditions(
        self,
        batch: int,
        style: Tensor | None,
        identity: Tensor | None,
        style_present: Tensor | None,
        identity_present: Tensor | None,
        style_strength: float,
        guidance_scale: float,
        device: torch.device,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, identity, weight of the identity): for guidance the unconditional half comes first."""
        dim = self.style_projection.config.style_dim
        everywhere = torch.ones(batch, dtype=torch.bool, device=device)
        with_style = everywhere if style_present is None else style_present.to(device)
        with_identity = everywhere if identity_present is None else identity_present.to(device)
        if style is None or not self.config.conditioned:
            style, with_style = torch.zeros(batch, dim), ~everywhere
        if identity is None or not self.config.conditioned:
            identity, with_identity = torch.zeros(batch, adapters.IDENTITY_DIM), ~everywhere
        style = style.to(device, self.style_projection.out.weight.dtype)
        tokens = self.style_projection(style, with_style, style_strength)
        identity = torch.where(with_identity[:, None], identity.to(device).float(), 0.0)
        weight = with_identity.float()
        if guidance_scale != 1:
            null = self.style_projection(style, ~everywhere)
            tokens = torch.cat([null, tokens])
            identity = torch.cat([identity, identity])
            weight = torch.cat([torch.zeros_like(weight), weight])
        return tokens, identity, weight

    def _denoise(
        self,
        bald: Tensor,
        repaint: Tensor,
        locked: Tensor,
        identity_mask: Tensor,
        guided: Tensor,
        conditions: tuple[Tensor, Tensor, Tensor],
        steps: int,
        guidance_scale: float,
        noise: Tensor,
        callback: Callable[..., Any] | None,
    ) -> Tensor:
        """From noise to latents; in the locked cells the bald image's latents, noised to each step, stand throughout.

        After the last step these cells hold its clean latents exactly. There it is the photo, byte for byte: so the
        photo's face is kept, and not even what the VAE's receptive field sees from there knows the old hair.

        `guided`, (B, 1, h, w) in [0, 1], is how much guidance counts in each cell.
        """
        tokens, identity, weight = conditions
        copies = len(tokens) // len(bald)
        scheduler = type(self.scheduler).from_config(self.scheduler.config)  # it counts steps: one for each call
        scheduler.set_timesteps(steps, device=bald.device)
        timesteps = scheduler.timesteps
        latents = _blend(scheduler, noise * scheduler.init_noise_sigma, bald, noise, locked, timesteps[:1])
        ip_mask = identity_mask.repeat(copies, 1, 1, 1) * weight[:, None, None, None]
        inputs = repaint.repeat(copies, 1, 1, 1), bald.repeat(copies, 1, 1, 1)
        for index, t in enumerate(self.progress_bar(timesteps)):
            scaled = scheduler.scale_model_input(latents, t).repeat(copies, 1, 1, 1)
            prediction = self._predict(scaled, t.expand(len(scaled)), *inputs, tokens, identity, ip_mask).float()
            if copies == 2:
                without, with_ = prediction.chunk(2)
                prediction = with_ + (guidance_scale - 1) * guided * (with_ - without)
            latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
            latents = _blend(scheduler, latents, bald, noise, locked, timesteps[index + 1 : index + 2])
            if callback is not None:
                changed = callback(self, index, t, {"latents": latents})
                latents = (changed or {}).get("latents", latents)
        return latents

    def _predict(
        self,
        noisy: Tensor,
        t: Tensor,
        mask: Tensor,
        masked: Tensor,
        tokens: Tensor,
        identity: Tensor,
        identity_mask: Tensor,
    ) -> Tensor:
        if adapters.has_ip_adapter(self.unet):
            return predict(self.unet, noisy, t, mask, masked, tokens, identity, identity_mask)
        prediction: Tensor = self.unet(torch.cat([noisy, mask, masked], 1), t, tokens, return_dict=False)[0]
        return prediction

    def _noise(self, like: Tensor, generator: Generators) -> Tensor:
        """Standard normal noise, drawn sample by sample."""
        generators = list(generator) if isinstance(generator, Sequence) else [generator] * len(like)
        if len(generators) != len(like):
            raise ValueError(f"{len(generators)} generators for {len(like)} images")
        rows = [
            torch.randn(like.shape[1:], generator=g, device="cpu" if g is None else g.device).to(like.device)
            for g in generators
        ]
        return torch.stack(rows)

    def _latent_size(self, resolution: int) -> tuple[int, int]:
        factor = latent_factor(self.vae)
        if resolution % factor:
            raise ValueError(f"resolution {resolution} is not a multiple of the VAE's factor {factor}")
        return resolution // factor, resolution // factor

    def _pixels(self, images: Sequence[np.ndarray], resolution: int, device: torch.device) -> Tensor:
        """uint8 RGB images -> (B, 3, resolution, resolution) in [-1, 1] on the device of the networks."""
        resized = np.stack([_resize(image, (resolution, resolution)) for image in images])
        return torch.from_numpy(resized).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1

    def _masks(self, masks: Sequence[np.ndarray], resolution: int, device: torch.device) -> Tensor:
        """bool masks -> (B, 1, resolution, resolution) covered share, on the device of the networks."""
        rows = [torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None, None] for mask in masks]
        return torch.cat([resize_mask(row, (resolution, resolution)) for row in rows]).to(device)

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Half-precision bases run under autocast, since their adapters are kept in fp32."""
        dtype = self.unet.conv_in.weight.dtype
        if dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype)


def make_scheduler(base: Base, name: SchedulerName) -> DDIMScheduler | DPMSolverMultistepScheduler:
    """DDIM (Song et al. 2021) or DPM-Solver++ 2M (Lu et al. 2022) on the base's noise schedule.

    "trailing" timesteps start at the last one, so that pure noise is what the model was trained to see there
    (Lin et al. 2024).
    """
    options = {"timestep_spacing": "trailing", "clip_sample": False}
    if name == "ddim":
        return DDIMScheduler.from_config(base.noise_scheduler.config, **options)
    if name == "dpm++":
        return DPMSolverMultistepScheduler.from_config(
            base.noise_scheduler.config, algorithm_type="dpmsolver++", timestep_spacing="trailing"
        )
    raise ValueError(f"scheduler {name!r} is neither ddim nor dpm++")


def _blend(scheduler: Any, latents: Tensor, kept: Tensor, noise: Tensor, locked: Tensor, t: Tensor) -> Tensor:
    """Put `kept` into the locked cells: noised to timestep t (1,), or clean if t is empty."""
    noised = scheduler.add_noise(kept, noise, t) if len(t) else kept
    return torch.where(locked > 0, noised, latents)


def _resize(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resize a uint8 RGB image to (height, width): by area downwards, by Lanczos upwards."""
    height, width = shape[:2]
    if image.shape[:2] == (height, width):
        return image
    smaller = height <= image.shape[0] and width <= image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LANCZOS4)


def _to_uint8(pixels: Tensor) -> list[np.ndarray]:
    """(B, 3, H, W) in [-1, 1] -> B uint8 RGB arrays (H, W, 3)."""
    scaled = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return list(scaled.permute(0, 2, 3, 1).cpu().numpy())
