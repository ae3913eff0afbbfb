"""The Stage 2 step beside a straightforward diffusers-style loop: same networks, same batch, same losses.

    uv run python benchmarks/train_step.py [--rounds 8]

On a CPU: the same architecture at a quarter of its width, so that its parts cost in proportion what they cost at full
size; CPU time of one thread, variants taking turns, so that load from elsewhere cancels out.
On a GPU: the Stable Diffusion 1.5 inpainting architecture with random weights, samples per second and share of the
chip's bf16 peak; the specification's 4 x 4 with checkpointing beside 16 x 1 without; and the peak of the allocations
beside what `plan-memory` predicts for them (its allowance for context and workspaces left out).

The straightforward loop is what public training scripts do: encode photo and bald image at every step, fp32 weights
under autocast, AdamW without fused kernels, for the five losses decode every image whole at every step. Ours runs under
the same autocast.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hair_pipeline.losses.gram import patch_gram_loss
from hair_pipeline.losses.identity import identity_loss
from hair_pipeline.losses.lpips import masked_lpips
from hair_pipeline.losses.predictions import add_noise, target, to_clean
from hair_pipeline.losses.style import style_loss
from hair_pipeline.models.architectures import SD15_INPAINTING
from hair_pipeline.models.base import Base, decode, encode, latent_factor
from hair_pipeline.models.inpainter import HairInpainter
from hair_pipeline.models.perceptual import PerceptualNet, untrained_lpips
from hair_pipeline.models.recogniser import FaceRecogniser, IResNet50, SmallFaceNet
from hair_pipeline.models.style_classifier import StyleClassifier
from hair_pipeline.profile import (
    ClassifierConfig,
    LossesConfig,
    LossTerm,
    ModelsConfig,
    PatchEncoderConfig,
    Profile,
    StageConfig,
)
from hair_pipeline.training.ema import Ema
from hair_pipeline.training.loop import make_optimizer
from hair_pipeline.training.memory_plan import CONTEXT_GIB, plan_stage
from hair_pipeline.training.pixel_losses import Judges
from hair_pipeline.training.stages import StageTask
from hair_pipeline.training.task import Batch, LoopConfig

STYLE_DIM = 128
SD15 = "stable-diffusion-v1-5/stable-diffusion-inpainting"
OFF = LossTerm(weight=0.0)
BASE_ONLY = LossesConfig(identity=OFF, lpips=OFF, gram=OFF, style=OFF)
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "4090": 165.0, "3090": 71.0, "A5000": 111.0}
"""Dense bf16 peaks, from the makers' data sheets."""
LORA_STEP_TFLOP = {True: 2.37, False: 1.77}
"""Forward and backward of the UNet per image at 64 x 64 latents, with and without checkpointing."""


def narrow_base() -> Base:
    """Stable Diffusion 1.5's architecture at a quarter of its width, random weights."""
    vae, unet = (
        values | {"block_out_channels": tuple(n // 4 for n in values["block_out_channels"]), "norm_num_groups": 16}
        for values in (SD15_INPAINTING.vae, SD15_INPAINTING.unet | {"cross_attention_dim": 192})
    )
    return replace(SD15_INPAINTING, vae=vae, unet=unet).build()


def random_judges() -> Judges:
    """Untrained networks of the sizes the sample profile uses."""
    return _judges("alex", FaceRecogniser(SmallFaceNet(), 512, "random"), StyleClassifier("loss", 16, 128))


def full_size_judges() -> Judges:
    """Untrained networks of the sizes that profiles for real cards use: ArcFace's ResNet-50, VGG, the classifier."""
    classifier = StyleClassifier("loss", ClassifierConfig().width, ClassifierConfig().resolution)
    return _judges("vgg", FaceRecogniser(IResNet50(), 512, "random"), classifier)


def _judges(trunk: Literal["alex", "vgg"], recogniser: FaceRecogniser, classifier: StyleClassifier) -> Judges:
    perceptual = untrained_lpips(trunk)
    for head in perceptual.lins:
        nn.init.constant_(head.model[-1].weight, 0.2)
    return Judges(recogniser, PerceptualNet(perceptual, "random", True), classifier.eval().requires_grad_(False))


def random_batch(base: Base, size: int, resolution: int, seed: int) -> Batch:
    """A batch as `StageDataset` gives it, with hair on the upper half of a head-and-shoulders photo."""
    chance = torch.Generator().manual_seed(seed)
    cells = resolution // latent_factor(base.vae)
    hair, face, pixels = torch.zeros(size, 1, cells, cells), torch.zeros(size, 1, cells, cells), torch.zeros(0)
    hair[:, :, cells // 8 : cells * 5 // 8, cells // 4 : cells * 3 // 4] = 1
    face[:, :, cells * 3 // 8 : cells * 3 // 4, cells * 3 // 8 : cells * 5 // 8] = 1
    hair = hair * (1 - face)
    pixels = F.interpolate(hair, scale_factor=float(latent_factor(base.vae)))
    box = torch.tensor([0.375, 0.375, 0.625, 0.75]) * resolution
    shape = (size, 4, cells, cells)
    return {
        "latents": torch.randn(shape, generator=chance),
        "masked_latents": torch.randn(shape, generator=chance),
        "mask": hair,
        "hair": hair,
        "face": face,
        "hair_pixels": pixels,
        "box": box.expand(size, 4).contiguous(),
        "style": F.normalize(torch.randn(size, STYLE_DIM, generator=chance), dim=1),
        "style_present": torch.ones(size, dtype=torch.bool),
        "identity": F.normalize(torch.randn(size, 512, generator=chance), dim=1),
        "identity_present": torch.ones(size, dtype=torch.bool),
        "reliable": torch.ones(size, dtype=torch.bool),
        "curl": torch.arange(size) % 3,
        "bangs": torch.arange(size) % 2,
        "noise": torch.randn(shape, generator=chance),
        "t": torch.randint(0, 1000, (size,), generator=chance),
        "turn": torch.zeros(size, dtype=torch.long),
        "photo": torch.rand(size, 3, resolution, resolution, generator=chance) * 2 - 1,
        "bald": torch.rand(size, 3, resolution, resolution, generator=chance) * 2 - 1,
    }


def with_largest_windows(batch: Batch) -> Batch:
    """The batch with hair all over and faces of half the image's side: the plan reckons with the most there can be."""
    side = batch["hair_pixels"].shape[-1]
    box = torch.tensor([0.25, 0.25, 0.75, 0.75]).mul(side).expand(len(batch["box"]), 4).contiguous()
    everywhere = {name: torch.ones_like(batch[name]) for name in ("hair", "hair_pixels")}
    return batch | everywhere | {"box": box}


class Ours:
    """The step of `training.stages` and `training.loop`: cached latents, fused optimizer, average of the weights."""

    def __init__(self, base: Base, judges: Judges, config: StageConfig, device: torch.device) -> None:
        if device.type == "cuda":
            base.unet.to(torch.bfloat16)
        model = HairInpainter.build(base, ModelsConfig(lora_rank=64 if device.type == "cuda" else 16), STYLE_DIM)
        self.task = StageTask("stage2", model, base.vae, base.noise_scheduler, config, _Empty(), 0, _Empty(), judges)  # type: ignore[arg-type]
        self.task.move(device)
        self.config = LoopConfig.of_stage(config, 1000)
        self.optimizer = make_optimizer(self.task.parameter_groups(), self.config, device)
        self.average = Ema(self.task.state(), config.ema_decay)
        if config.compile:
            model.compile()
        self.device = device
        self.steps = 0

    def step(self, batches: list[Batch]) -> None:
        """One optimizer step over the micro-batches."""
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16):
                total = self.task.losses(batch | {"turn": [self.steps]}, self.steps).total()
            assert total is not None
            (total / len(batches)).backward()
        nn.utils.clip_grad_norm_([p for p in self.task.model.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        self.average.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1


class Straightforward:
    """What public scripts do; see the module's docstring."""

    def __init__(
        self, base: Base, judges: Judges, config: StageConfig, device: torch.device, *, pixel_losses: bool
    ) -> None:
        self.model = HairInpainter.build(base, ModelsConfig(lora_rank=64 if device.type == "cuda" else 16), STYLE_DIM)
        self.model.to(device)
        self.vae = base.vae.requires_grad_(False).to(device)
        self.judges, self.pixel_losses, self.device = judges, pixel_losses, device
        for judge in judges.modules():
            judge.to(device)
        self.alphas, self.kind = (
            base.noise_scheduler.alphas_cumprod.to(device),
            base.noise_scheduler.config.prediction_type,
        )
        if config.gradient_checkpointing:
            self.model.unet.enable_gradient_checkpointing()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trained = trained
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, foreach=False, fused=False)
        self.average = Ema({str(i): p for i, p in enumerate(trained)}, 0.999)

    def step(self, batches: list[Batch]) -> None:
        """One optimizer step over the micro-batches."""
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16):
                total = self._loss(batch)
            (total / len(batches)).backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.average.update()
        self.optimizer.zero_grad()

    def _loss(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            clean, masked = encode(self.vae, batch["photo"]).float(), encode(self.vae, batch["bald"]).float()
        t, noise = batch["t"], batch["noise"]
        noisy = add_noise(clean, noise, t, self.alphas)
        prediction = self.model(
            noisy,
            t,
            batch["mask"],
            masked,
            batch["style"],
            batch["identity"],
            batch["face"],
            style_present=batch["style_present"],
            identity_present=batch["identity_present"],
        ).float()
        wanted = target(self.kind, clean, noise, t, self.alphas)
        loss = ((prediction - wanted).square() * batch["mask"]).mean()
        if not self.pixel_losses:
            return loss
        judges = self.judges
        output = decode(self.vae, to_clean(self.kind, prediction, noisy, t, self.alphas)).float()
        original, hair = batch["photo"], batch["hair_pixels"]
        assert judges.recogniser is not None
        assert judges.perceptual is not None
        assert judges.classifier is not None
        with torch.no_grad():
            reference = judges.recogniser.embed(original, batch["box"])
        terms = (
            identity_loss(judges.recogniser, output, reference, batch["box"], batch["reliable"]),
            masked_lpips(judges.perceptual, output, original, hair),
            patch_gram_loss(judges.perceptual, output, hair, original, hair),
            style_loss(judges.classifier, output, batch["curl"], batch["bangs"]),
        )
        return loss + 0.1 * sum(term for term in terms if term is not None)


class _Empty:
    def __len__(self) -> int:
        return 0


def measure(
    variants: dict[str, Any], batches: list[Batch], rounds: int, per_step: int, device: torch.device
) -> dict[str, float]:
    """Median seconds per optimizer step; the variants take turns, every round over the same batches."""
    clock: Callable[[], float] = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = clock()
            for place in range(0, len(batches), per_step):
                variant.step(batches[place : place + per_step])
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append((clock() - began) / (len(batches) // per_step))
    return {name: statistics.median(values) for name, values in seconds.items()}


def on_cpu(rounds: int, size: int, resolution: int, *, ours_only: bool) -> None:
    """The table of ratios."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    config = StageConfig(gradient_checkpointing=False, losses=BASE_ONLY, resolution=resolution)
    all_losses = config.model_copy(update={"losses": LossesConfig()})
    variants: dict[str, Any] = {
        "ours, base loss": Ours(narrow_base(), Judges(), config, device),
        "ours, five losses": Ours(narrow_base(), random_judges(), all_losses, device),
    }
    if not ours_only:
        variants |= {
            f"straightforward, {losses}": Straightforward(narrow_base(), judges, config, device, pixel_losses=every)
            for losses, judges, every in (("base loss", Judges(), False), ("five losses", random_judges(), True))
        }
    base = narrow_base()
    batches = [random_batch(base, size, resolution, seed) for seed in range(16)]
    seconds = measure(variants, batches, rounds, 1, device)
    print("CPU, one thread, CPU time; Stable Diffusion 1.5 at a quarter of its width,", end=" ")
    print(f"{resolution}x{resolution}, batch {size}, {rounds} rounds of 16 steps\n")
    print("| step | ms per step | samples/s | against ours, base loss |\n|---|---|---|---|")
    reference = seconds["ours, base loss"]
    for name, value in seconds.items():
        print(f"| {name} | {value * 1000:.0f} | {size / value:.1f} | {value / reference:.2f} x the time |")
    slower = seconds["ours, five losses"] / reference
    print(f"\nfive losses: {slower:.2f} x the time of the base loss alone (goal: at most 1.6)")
    if not ours_only:
        faster = seconds["straightforward, base loss"] / reference
        print(f"base loss: {faster:.2f} x the samples/s of the straightforward loop (goal: at least 1.4)")


@dataclass(frozen=True)
class GpuRow:
    """One step to measure on a GPU: 16 images, in micro-batches of `size`."""

    title: str
    size: int
    checkpointed: bool = False
    compiled: bool = False
    five_losses: bool = False
    ours: bool = True

    @property
    def config(self) -> StageConfig:
        """The stage's values; pixel losses as the profiles for real cards have them."""
        return StageConfig(
            batch_size=self.size,
            gradient_accumulation_steps=16 // self.size,
            gradient_checkpointing=self.checkpointed,
            compile=self.compiled,
            gradient_norm_every=0,
            losses=LossesConfig() if self.five_losses else BASE_ONLY,
        )

    def predicted_gib(self) -> float | None:
        """Peak of the allocations by the memory plan; None for what it does not plan."""
        if self.compiled or not self.ours:
            return None
        models = ModelsConfig(base=SD15, recogniser="IResNet50", perceptual="vgg", lora_rank=64)
        encoder = PatchEncoderConfig(embedding_dim=STYLE_DIM)
        plan = plan_stage(Profile(name=self.title, models=models, patch_encoder=encoder, stage2=self.config), "stage2")
        return plan.peak_gib - CONTEXT_GIB


GPU_ROWS = (
    GpuRow("ours, 4 x 4 checkpointed", 4, checkpointed=True),
    GpuRow("ours, 4 x 4 checkpointed, five losses", 4, checkpointed=True, five_losses=True),
    GpuRow("ours, 16 x 1", 16),
    GpuRow("ours, 16 x 1, five losses", 16, five_losses=True),
    GpuRow("ours, 16 x 1 compiled", 16, compiled=True),
    GpuRow("straightforward, 4 x 4 checkpointed", 4, checkpointed=True, ours=False),
    GpuRow("straightforward, 16 x 1", 16, ours=False),
)


def on_gpu(rounds: int) -> None:
    """Samples per second and memory of the real architecture; see the module's docstring."""
    name = torch.cuda.get_device_name()
    peak = next((value for key, value in PEAK_TFLOPS.items() if key in name), None)
    print(f"{name}, Stable Diffusion 1.5 inpainting architecture, random weights, 512x512, effective batch 16\n")
    print("| step | samples/s | share of bf16 peak | peak memory | predicted | predicted / measured |")
    print("|---|---|---|---|---|---|")
    for row in GPU_ROWS:
        rate, memory = measure_on_gpu(row, rounds)
        share = "" if peak is None or row.five_losses else f"{rate * LORA_STEP_TFLOP[row.checkpointed] / peak:.1%}"
        predicted = row.predicted_gib()
        plan = " | " if predicted is None else f"{predicted:.1f} GiB | {predicted / memory:.2f}"
        print(f"| {row.title} | {rate:.1f} | {share} | {memory:.1f} GiB | {plan} |", flush=True)


def measure_on_gpu(row: GpuRow, rounds: int) -> tuple[float, float]:
    """(samples per second, peak of the allocations in GiB); a round has four steps, one with pixel losses if any."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    base, judges = SD15_INPAINTING.build(), full_size_judges() if row.five_losses else Judges()
    variant: Any = (
        Ours(base, judges, row.config, device)
        if row.ours
        else Straightforward(base, judges, row.config, device, pixel_losses=row.five_losses)
    )
    needless = ("photo", "bald") if row.ours else ()
    batches = []
    for seed in range(16 // row.size):
        batch = with_largest_windows(random_batch(base, row.size, 512, seed))
        batches.append({key: value.to(device) for key, value in batch.items() if key not in needless})
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    seconds = measure({row.title: variant}, batches * 4, rounds, len(batches), device)[row.title]
    return 16 / seconds, torch.cuda.max_memory_allocated() / 2**30


def main() -> None:
    """Measure on the GPU where there is one, else on the CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4, help="CPU only")
    parser.add_argument("--resolution", type=int, default=256, help="CPU only")
    parser.add_argument("--cpu", action="store_true", help="measure on the CPU also where there is a GPU")
    parser.add_argument("--ours-only", action="store_true", help="CPU only: leave the straightforward loop out")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    if torch.cuda.is_available() and not arguments.cpu:
        on_gpu(arguments.rounds)
    else:
        on_cpu(arguments.rounds, arguments.batch, arguments.resolution, ours_only=arguments.ours_only)


if __name__ == "__main__":
    main()
