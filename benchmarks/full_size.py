"""The full-size architecture without any download: one step of Stage 1 and of Stage 2, export, reload, on a CPU.

    uv run python benchmarks/full_size.py [--resolution 512]

Stable Diffusion 1.5 inpainting from its public configuration (UNet of 859 M parameters, AutoencoderKL of factor 8) with
random weights, LoRA of rank 64 and IP-Adapter; bf16 base under autocast, as on a GPU. Prints a table of seconds and
peak resident memory, and fails if the reloaded model predicts anything else than the exported one.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from train_step import STYLE_DIM, _Empty, full_size_judges, random_batch

from hair_pipeline.models import adapters
from hair_pipeline.models.architectures import SD15_INPAINTING
from hair_pipeline.models.base import Base, encode
from hair_pipeline.models.inpainter import HairInpainter
from hair_pipeline.profile import LossesConfig, LossTerm, ModelsConfig, StageConfig
from hair_pipeline.training.loop import make_optimizer
from hair_pipeline.training.pixel_losses import Judges
from hair_pipeline.training.stages import StageTask
from hair_pipeline.training.task import Batch, LoopConfig

LIMIT_GIB = 20.0


@contextmanager
def row(title: str) -> Iterator[None]:
    """A row of the table: seconds of this part, and the process's peak so far."""
    began = time.monotonic()
    yield
    print(f"| {title} | {time.monotonic() - began:.0f} | {peak_gib():.1f} |", flush=True)


def peak_gib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def make_base() -> Base:
    """Random weights, the same every time."""
    torch.manual_seed(0)
    base = SD15_INPAINTING.build()
    base.unet.to(torch.bfloat16)
    base.vae.to(torch.bfloat16)
    return base


def one_step(name: str, model: HairInpainter, base: Base, judges: Judges, config: StageConfig, batch: Batch) -> None:
    """Forward, all losses of the stage, backward, optimizer."""
    task = StageTask(name, model, base.vae, base.noise_scheduler, config, _Empty(), 0, _Empty(), judges)  # type: ignore[arg-type]
    optimizer = make_optimizer(task.parameter_groups(), LoopConfig.of_stage(config, 100), torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        losses = task.losses(batch, 0)
    total = losses.total()
    assert total is not None
    total.backward()
    optimizer.step()
    values = ", ".join(f"{term} {float(value):.4g}" for term, value in losses.raw.items())
    print(f"<!-- {name}: {values} -->", flush=True)


@torch.no_grad()
def predict(model: HairInpainter, batch: Batch) -> torch.Tensor:
    """The prediction for a batch."""
    with torch.autocast("cpu", torch.bfloat16):
        prediction: torch.Tensor = model(
            batch["noise"],
            batch["t"],
            batch["mask"],
            batch["masked_latents"],
            batch["style"],
            batch["identity"],
            batch["face"],
            style_present=batch["style_present"],
            identity_present=batch["identity_present"],
        )
    return prediction.float()


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="where to export (5 GB); a temporary folder if left out")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    size = arguments.resolution
    stage2 = StageConfig(batch_size=1, resolution=size, losses=LossesConfig(pixel_max_t=1.0))
    stage1 = stage2.model_copy(update={"losses": stage2.losses.model_copy(update={"identity": LossTerm(weight=0.0)})})
    print(f"Stable Diffusion 1.5 inpainting, random weights, bf16, {size}x{size}, batch 1, gradient checkpointing\n")
    print("| part | seconds | peak memory so far, GiB |\n|---|---|---|", flush=True)
    with row("build base, adapters and loss networks"):
        base = make_base()
        model = HairInpainter.build(base, ModelsConfig(lora_rank=64), STYLE_DIM)
        judges = full_size_judges()
    millions = sum(value.numel() for value in adapters.plain_state(model.unet).values()) / 1e6
    with row("encode photo and bald image"):
        batch = random_batch(base, 1, size, 0)
        batch["t"][:] = 200  # where pixel losses look
        with torch.no_grad():
            batch["latents"], batch["masked_latents"] = (encode(base.vae, batch[k]).float() for k in ("photo", "bald"))
    for parameter in adapters.ip_adapter_parameters(model.unet):
        parameter.requires_grad_(False)
    with row("Stage 1: one optimizer step, four losses"):
        one_step("stage1", model, base, judges, stage1, batch)
    for parameter in adapters.ip_adapter_parameters(model.unet):
        parameter.requires_grad_(True)
    with row("Stage 2: one optimizer step, five losses"):
        one_step("stage2", model, base, judges, stage2, batch)
    model.unet.disable_gradient_checkpointing()
    del judges
    expected = predict(model, batch)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        with row("export adapters and merged UNet"):
            model.save_adapters(Path(folder) / "adapters")
            model.merged_unet().save_pretrained(Path(folder) / "unet")
        written = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 2**30
        del model, base
        with row("reload the adapters on a fresh base and predict"):
            again = HairInpainter.from_adapters(make_base(), Path(folder) / "adapters")
            difference = float((predict(again, batch) - expected).abs().max())
    print(
        f"\nUNet {millions:.0f} M parameters with its projection; {written:.1f} GiB exported; largest difference after"
    )
    print(f"reloading {difference:.2g}; peak {peak_gib():.1f} GiB of {LIMIT_GIB:.0f}")
    if difference > 0 or peak_gib() > LIMIT_GIB:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
