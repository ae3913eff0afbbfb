"""How much GPU memory a stage will need, predicted without a GPU, and which switch to turn when it is too much.

Belongs here: one training step of the real configuration on fake tensors, and what follows from it.
Does not belong here: how the tensors are faked and counted (`memory_trace`).
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn

from hair_pipeline.errors import PipelineError
from hair_pipeline.losses.gram import local_grams
from hair_pipeline.models import adapters
from hair_pipeline.models.architectures import Architecture, architecture_of, is_stand_in
from hair_pipeline.models.base import Base, decode, latent_factor, tiny_base
from hair_pipeline.models.inpainter import HairInpainter
from hair_pipeline.models.perceptual import PerceptualNet, untrained_lpips
from hair_pipeline.models.recogniser import FaceRecogniser, IResNet50, SmallFaceNet
from hair_pipeline.models.style_classifier import StyleClassifier
from hair_pipeline.profile import Profile, StageConfig
from hair_pipeline.settings import Settings
from hair_pipeline.training.memory_trace import GIB, AllocationTracker, cuda_rules, fake_gpu, materialise
from hair_pipeline.training.pixel_losses import Judges
from hair_pipeline.training.validation import IMAGES_AT_ONCE, SAMPLED_AT_ONCE, compare
from hair_pipeline.training.windows import largest_side

log = logging.getLogger(__name__)

StageName = Literal["stage1", "stage2"]

CONTEXT_GIB = 1.2
"""Allowance for what no allocation shows: the CUDA context, kernels, cuDNN's workspaces, the allocator's gaps."""

FACE_SHARE = 0.5
"""Side of the square a recogniser sees, as share of the image's side: a large face in a head-and-shoulders photo."""

_MEMORY_FIELDS = (
    "resolution",
    "batch_size",
    "gradient_accumulation_steps",
    "finetune_blocks",
    "precision",
    "gradient_checkpointing",
    "optimizer",
)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Trace:
    """Bytes of one step: what is always there, and the most there was in its phases.

    Attributes:
        weights: UNet and adapters.
        judges: VAE, and the frozen networks of the pixel losses.
        average, gradients, optimizer: one or two values per trained parameter.
        retained: alive after the UNet's forward pass, all of the above included.
        pixel_peak: the most while pixel losses are decoded and differentiated; `retained` without them.
        unet_peak: the most in the UNet's forward and backward passes.
        validation_peak: the most in validation, whose batches have a size of their own: predicting, and decoding and
            comparing what was sampled; the trained weights, in whose place the average is, are kept meanwhile.
    """

    weights: int
    judges: int
    average: int
    gradients: int
    optimizer: int
    retained: int
    pixel_peak: int
    unet_peak: int
    validation_peak: int

    @property
    def resident(self) -> int:
        """What is there throughout."""
        return self.weights + self.judges + self.average + self.gradients + self.optimizer

    @property
    def peak(self) -> int:
        """The most in the whole step."""
        return max(self.pixel_peak, self.unet_peak, self.validation_peak)


@dataclass(frozen=True)
class MemoryPlan:
    """The prediction for one stage.

    Attributes:
        stage: "stage1" or "stage2".
        title: what was planned, in words.
        parts: GiB by part; they add up to the peak.
        capacity_gib: what the card has.
        advice: sentences.
    """

    stage: StageName
    title: str
    parts: dict[str, float]
    capacity_gib: float
    advice: tuple[str, ...] = ()

    @property
    def peak_gib(self) -> float:
        """The predicted peak."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the peak is within the capacity."""
        return self.peak_gib <= self.capacity_gib

    @property
    def verdict(self) -> str:
        """The last line."""
        word = "fits" if self.fits else f"does not fit: {self.peak_gib - self.capacity_gib:.1f} GiB too much"
        return f"peak: {self.peak_gib:.1f} GiB of {self.capacity_gib:.1f} GiB: {word}"

    def lines(self) -> list[str]:
        """The whole plan as text, `verdict` last."""
        width = max(map(len, self.parts))
        table = [f"  {name:<{width}}  {value:5.1f} GiB" for name, value in self.parts.items()]
        return [self.title, *table, *self.advice, self.verdict]


def plan_stage(
    profile: Profile,
    stage: StageName,
    settings: Settings | None = None,
    *,
    capacity_gib: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> MemoryPlan:
    """Predict the peak memory of a stage on one GPU.

    Weights are not read: a base that is not in the models folder is reckoned with from its public configuration.

    Args:
        settings: where local weights are.
        capacity_gib: what the card has; the profile's `gpu_memory_gib` when left out.
        progress: told what is being traced.

    Raises:
        PipelineError: the base's configuration cannot be had.
    """
    config: StageConfig = getattr(profile, stage)
    step = _Step(profile, stage, config, _architecture(profile, settings))
    tell = progress or log.info
    capacity = profile.gpu_memory_gib if capacity_gib is None else capacity_gib

    tell(f"{stage}: tracing a step of batch {config.batch_size} with all its losses")
    line = step.line(config.gradient_checkpointing)
    own = line.trace
    tell(f"{stage}: the same {'without' if config.gradient_checkpointing else 'with'} gradient checkpointing")
    other = step.line(not config.gradient_checkpointing, own.validation_peak)
    lines = {config.gradient_checkpointing: line, not config.gradient_checkpointing: other}

    parts = {
        "UNet and adapters": own.weights,
        "VAE and loss networks": own.judges,
        "average of the weights (EMA)": own.average,
        "gradients": own.gradients,
        "optimizer": own.optimizer,
        "activations": max(own.unet_peak, own.validation_peak) - own.resident,
        "pixel-loss decode": own.peak - max(own.unet_peak, own.validation_peak),
    }
    gib = {name: value / GIB for name, value in parts.items()} | {"CUDA context and workspaces": CONTEXT_GIB}
    title = (
        f"{stage} of profile {profile.name}: {config.resolution}x{config.resolution}, batch {config.batch_size}, "
        f"{config.precision}, {'with' if config.gradient_checkpointing else 'without'} gradient checkpointing"
    )
    plan = MemoryPlan(stage, title, gib, capacity)
    return replace(plan, advice=tuple(_advice(plan, config, lines, own)))


def refuse_what_cannot_fit(
    profile: Profile, stage: StageName, settings: Settings | None, device: torch.device
) -> MemoryPlan | None:
    """Plan a stage against the memory of the GPU it is about to run on. Does nothing on a CPU.

    Raises:
        PipelineError: it does not fit; the message names the peak and the switches to turn.
    """
    if device.type != "cuda":
        return None
    capacity = torch.cuda.get_device_properties(device).total_memory / GIB
    plan = plan_stage(profile, stage, settings, capacity_gib=capacity)
    if not plan.fits:
        raise PipelineError(
            f"{stage} does not fit the GPU's memory; {plan.verdict}",
            remedy="; ".join(plan.advice) + f" (the whole plan: hair-pipeline plan-memory --profile {profile.name})",
        )
    return plan


def switches(config: StageConfig) -> list[str]:
    """What can be turned where the memory ran out after all, cheapest in time and quality first."""
    found = []
    if config.losses.pixel_batch > 1:
        found.append("pixel_batch: 1")
    if config.optimizer == "adamw":
        found.append("optimizer: adamw8bit")
    if config.batch_size > 1:
        half = max(1, config.batch_size // 2)
        accumulation = config.gradient_accumulation_steps * config.batch_size // half
        found.append(f"batch_size: {half} with gradient_accumulation_steps: {accumulation} (the same effective batch)")
    if not config.gradient_checkpointing:
        found.append("gradient_checkpointing: true (a step takes about a third longer)")
    if config.losses.pixel_crop > 0.4:
        found.append("pixel_crop: 0.4")
    return [f"set {switch}" for switch in found] or ["use a card with more memory, or a smaller lora_rank"]


@dataclass(frozen=True)
class _Line:
    """Peaks at all batches: what the UNet retains is linear in the batch (not proportional: copies in half precision of
    the trained weights are a constant part of it), the pixel losses follow the images they decode.

    Attributes:
        config: the stage, with the batch of the trace.
        trace: of one step.
        doubled: of the UNet's passes alone, at twice the batch.
    """

    config: StageConfig
    trace: Trace
    doubled: Trace

    def peak_gib(self, batch: int) -> float:
        trace, more = self.trace, batch / self.config.batch_size - 1
        retained = trace.retained + more * (self.doubled.retained - trace.retained)
        unet = trace.unet_peak + more * (self.doubled.unet_peak - trace.unet_peak)
        return max(retained + self._pixels(batch), unet, trace.validation_peak) / GIB + CONTEXT_GIB

    def _pixels(self, batch: int) -> float:
        """What the pixel losses add: in proportion to the images they decode, not less than at the trace's batch."""
        decoded, traced = (min(size, self.config.losses.pixel_batch) for size in (batch, self.config.batch_size))
        return max(1.0, decoded / traced) * (self.trace.pixel_peak - self.trace.retained)

    def largest(self, capacity_gib: float) -> int:
        """The largest micro-batch that fits, 0 if none does."""
        batch = 0
        while batch < 512 and self.peak_gib(batch + 1) <= capacity_gib:
            batch += 1
        return batch


def _advice(plan: MemoryPlan, config: StageConfig, lines: dict[bool, _Line], own: Trace) -> list[str]:
    capacity, batch = plan.capacity_gib, config.batch_size
    largest = {checkpointed: line.largest(capacity) for checkpointed, line in lines.items()}
    found = [
        f"largest micro-batch that fits: {largest[True]} with gradient_checkpointing, {largest[False]} without "
        f"(an optimizer step has {batch * config.gradient_accumulation_steps} images, of all processes together)"
    ]
    without = lines[False].peak_gib(batch)
    if plan.fits:
        needed = without > capacity
        found.append(
            f"gradient_checkpointing is {'' if needed else 'not '}needed at batch {batch}: without it the peak is "
            f"{without:.1f} GiB"
            + ("" if needed or not config.gradient_checkpointing else ", and a step computes about a quarter less")
        )
        return found
    if not config.gradient_checkpointing and largest[True] >= batch:
        found.append(f"set gradient_checkpointing: true: the peak becomes {lines[True].peak_gib(batch):.1f} GiB")
    smaller = max((b for b in range(1, batch) if b <= largest[config.gradient_checkpointing]), default=0)
    if smaller:
        accumulation = -(-batch * config.gradient_accumulation_steps // smaller)
        found.append(f"set batch_size: {smaller} with gradient_accumulation_steps: {accumulation}")
    if config.losses.pixel_batch > 1 and own.pixel_peak > own.unet_peak:
        found.append("set losses.pixel_batch: 1: fewer images are decoded")
    if config.optimizer == "adamw":
        found.append(f"set optimizer: adamw8bit: {0.75 * own.optimizer / GIB:.1f} GiB less")
    return found


def _architecture(profile: Profile, settings: Settings | None) -> Architecture:
    if not is_stand_in(profile.models.base):
        return architecture_of(profile.models.base, None if settings is None else settings.models_dir)
    base = tiny_base()
    return Architecture(dict(base.vae.config), dict(base.unet.config), dict(base.noise_scheduler.config), 1)


@dataclass
class _Step:
    """One training step of a stage, as `stages.StageTask` makes it, on fake tensors."""

    profile: Profile
    stage: StageName
    config: StageConfig
    architecture: Architecture

    def line(self, checkpointed: bool, validation_peak: int | None = None) -> _Line:
        """Peaks at all micro-batches; `validation_peak` as in `trace`."""
        batch = self.config.batch_size
        trace = self.trace(batch, checkpointed, validation_peak=validation_peak)
        return _Line(self.config, trace, self.trace(2 * batch, checkpointed, only_unet=True))

    def trace(
        self, batch: int, checkpointed: bool, *, only_unet: bool = False, validation_peak: int | None = None
    ) -> Trace:
        """Allocations of one step at a micro-batch; see `Trace`.

        Args:
            only_unet: leave the pixel losses and validation out, which take half of the time.
            validation_peak: of another trace of this stage. Validation has no gradients, so that neither the
                micro-batch nor checkpointing changes it: it need not be traced again.
        """
        base, model, judges = self._networks
        for network in (model.unet, base.vae):
            if checkpointed:
                network.enable_gradient_checkpointing()
            else:
                network.disable_gradient_checkpointing()
        base.vae.enable_slicing()
        dtype = _DTYPES[self.config.precision]
        with fake_gpu() as tracker, contextlib.ExitStack() as autocast:
            autocast.enter_context(cuda_rules(dtype))
            weights = _grown(tracker, materialise, model)
            frozen = _grown(tracker, materialise, nn.ModuleList([base.vae, *judges.modules()]))
            trained = [p for p in model.parameters() if p.requires_grad]
            kept: list[Tensor] = []  # alive until the trace ends
            average = _grown(tracker, kept.extend, (torch.empty(p.shape) for p in trained))
            state = _grown(tracker, kept.extend, self._optimizer_state(trained))
            gradients = 0
            if self.config.gradient_accumulation_steps > 1:  # else they take the place of freed activations
                gradients = _grown(tracker, _set_gradients, trained)
            tracker.reset_peak()

            prediction = self._predict(base, model, batch).float()
            retained = tracker.now
            forward_peak = tracker.peak
            tracker.reset_peak()
            seed = torch.empty_like(prediction)
            if not only_unet:
                self._pixel_losses(base, judges, prediction, min(batch, self.config.losses.pixel_batch))
            pixel_peak = tracker.peak
            tracker.reset_peak()
            torch.autograd.backward(prediction, seed)
            unet_peak = max(forward_peak, tracker.peak)
            del prediction
            if not gradients:
                gradients = sum(p.grad.untyped_storage().nbytes() for p in trained if p.grad is not None)
                unet_peak = max(unet_peak, tracker.now)
            tracker.reset_peak()
            kept += (torch.empty(p.shape) for p in trained)
            if not only_unet and validation_peak is None:
                with torch.no_grad():
                    self._predict(base, model, IMAGES_AT_ONCE)
                    autocast.close()
                    with cuda_rules(torch.float32):
                        self._compare(base, judges)
            validation_peak = tracker.peak if validation_peak is None else validation_peak
        return Trace(weights, frozen, average, gradients, state, retained, pixel_peak, unet_peak, validation_peak)

    @cached_property
    def _networks(self) -> tuple[Base, HairInpainter, Judges]:
        """Networks without memory, in the dtypes they have in training; every trace gives them memory of its own."""
        profile, config = self.profile, self.config
        with torch.device("meta"), _quiet():
            base = self.architecture.build()
            if config.precision == "bf16":
                base.vae.to(torch.bfloat16)
            base.vae.requires_grad_(False)
            model = HairInpainter.build(
                base, profile.models, profile.patch_encoder.embedding_dim, config.finetune_blocks
            )
            if config.precision != "fp32":
                model.cast_frozen(_DTYPES[config.precision])
            if self.stage == "stage2":
                model.keep_exact(profile.stage1.finetune_blocks)
            if self.stage == "stage1":
                for parameter in adapters.ip_adapter_parameters(model.unet):
                    parameter.requires_grad_(False)
            return base, model.train(), self._judges()

    def _judges(self) -> Judges:
        profile, losses = self.profile, self.config.losses
        judges = Judges()
        if losses.identity.weight > 0 and self.stage == "stage2":
            network = SmallFaceNet() if profile.models.recogniser == "stand_in" else IResNet50()
            judges.recogniser = FaceRecogniser(network, adapters.IDENTITY_DIM, "planned")
        trunk: Literal["vgg", "alex"] = "vgg" if profile.models.perceptual == "vgg" else "alex"
        judges.perceptual = PerceptualNet(untrained_lpips(trunk), trunk, True)  # validation uses it in any case
        if losses.style.weight > 0:
            classifier = StyleClassifier("loss", profile.classifier.width, profile.classifier.resolution)
            judges.classifier = classifier.eval().requires_grad_(False)
        return judges

    def _optimizer_state(self, trained: list[nn.Parameter]) -> Iterator[Tensor]:
        dtype = torch.float32 if self.config.optimizer == "adamw" else torch.uint8
        return (torch.empty(p.shape, dtype=dtype) for p in trained for _ in range(2))

    def _cells(self, base: Base) -> int:
        return self.config.resolution // latent_factor(base.vae)

    def _predict(self, base: Base, model: HairInpainter, batch: int) -> Tensor:
        cells, channels = self._cells(base), int(base.vae.config.latent_channels)
        present = torch.empty(batch, dtype=torch.bool)
        latents, one = torch.empty(batch, channels, cells, cells), torch.empty(batch, 1, cells, cells)
        prediction: Tensor = model(
            latents,
            torch.empty(batch, dtype=torch.long),
            one,
            torch.empty_like(latents),
            torch.empty(batch, model.style_projection.config.style_dim),
            torch.empty(batch, adapters.IDENTITY_DIM),
            one,
            style_present=present,
            identity_present=present,
        )
        return prediction

    def _compare(self, base: Base, judges: Judges) -> None:
        """Decode sampled images and their originals, and compare them, as `validation.sample_held_out` does."""
        assert judges.perceptual is not None
        images = min(SAMPLED_AT_ONCE, self.config.validation_images)
        cells, channels = self._cells(base), int(base.vae.config.latent_channels)
        result, original = (decode(base.vae, torch.empty(images, channels, cells, cells)).float() for _ in range(2))
        compare(judges.perceptual, result, original, torch.empty(images, 1, *result.shape[-2:]))

    def _pixel_losses(self, base: Base, judges: Judges, prediction: Tensor, images: int) -> None:
        """What `pixel_losses` decodes and looks at, windows as large as they get, and its way back.

        The first backward pass keeps the graph, as those do that measure each loss's gradient norm.
        """
        terms, vae = self.config.losses, base.vae
        cells, factor = self._cells(base), latent_factor(base.vae)
        looked_at: list[Tensor] = []
        compared = terms.lpips.weight > 0 or terms.gram.weight > 0
        for image in range(images):
            estimate = prediction[image : image + 1] * 2
            if judges.recogniser is not None:
                side = min(cells, -(-int(cells * FACE_SHARE + 2) // 4) * 4)
                face = estimate[..., :side, :side]
                looked_at.append(judges.recogniser.embed(decode(vae, face).float(), torch.empty(1, 4)).sum())
            if not compared and judges.classifier is None:
                continue
            side = largest_side(cells, terms.pixel_crop)
            window = estimate[..., :side, :side]
            output = decode(vae, window).float()
            if compared:
                assert judges.perceptual is not None
                mask, original = torch.empty(1, 1, side * factor, side * factor), torch.empty_like(output)
                with torch.no_grad():
                    known = judges.perceptual.masked_features(original, mask)
                maps = judges.perceptual.masked_features(output, mask)
                if terms.lpips.weight > 0:
                    looked_at.append(judges.perceptual.distance(output, original, mask, (maps, known)).sum())
                if terms.gram.weight > 0:
                    looked_at += [gram.sum() for gram, _ in local_grams(maps, mask, 4)]
            if judges.classifier is not None:
                whole = torch.empty(1, 3, cells * factor, cells * factor)
                if image == images - 1:  # the decoded original is the same size every time, and not kept
                    with torch.no_grad():
                        decode(vae, estimate.detach())
                whole[..., : side * factor, : side * factor] = output
                looked_at.append(sum(logits.sum() for logits in judges.classifier(whole).values()))
        if looked_at:
            total = torch.stack(looked_at).sum()
            if self.config.gradient_norm_every > 0:
                torch.autograd.grad(total, prediction, retain_graph=True)
            torch.autograd.grad(total, prediction)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings about dtypes and copies, which mean nothing where there are no values."""
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.set_verbosity(verbosity)


def stages_to_plan(profile: Profile) -> tuple[StageName, ...]:
    """Stage 2, and Stage 1 too where it could need more: Stage 2 has all of its losses and the identity loss."""

    def needs(config: StageConfig) -> dict[str, object]:
        values = config.model_dump(include=set(_MEMORY_FIELDS))
        return values | config.losses.model_dump(exclude={"identity", "mask_l2", "context", "min_snr_gamma"})

    return ("stage2",) if needs(profile.stage1) == needs(profile.stage2) else ("stage1", "stage2")


def _set_gradients(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.empty(parameter.shape)


def _grown(tracker: AllocationTracker, action: Callable[[Any], None], argument: Any) -> int:
    """By how many bytes an action lets the tracker grow."""
    before = tracker.now
    action(argument)
    return tracker.now - before
