"""The one training loop: every trainer runs through `run`, which reads from top to bottom like the algorithm.

Belongs here: stepping, precision, accumulation, clipping, averaging, logging, saving and stopping.
Does not belong here: what is learnt (`task` and the trainers) and the files of a run folder (`runs`).
"""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import write_bytes
from hair_pipeline.training import checkpoint
from hair_pipeline.training.ema import Ema
from hair_pipeline.training.task import Batch, LoopConfig, StepLosses, Task

log = logging.getLogger(__name__)

MAX_BAD_STEPS = 10
"""So many optimizer steps in a row with a non-finite loss stop the run."""


class Interrupted(PipelineError):
    """The run was asked to stop (SIGTERM) and has saved its state."""


@dataclass
class Progress:
    """The counters that go into a checkpoint besides the weights."""

    bad_steps: int = 0
    bad_in_a_row: int = 0
    ema_updates: int = 0
    micro_batches: int = 0
    validations: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class LoopResult:
    """What a finished run measured: validation at the start and at the end, and its counters."""

    steps: int
    start: dict[str, float]
    end: dict[str, float]
    bad_steps: int
    seconds: float
    pictures: list[Path]
    last_losses: dict[str, float]


def run(task: Task, config: LoopConfig, folder: Path, *, resume: bool = True) -> LoopResult:
    """Train `task` for `config.steps` optimizer steps; afterwards its network holds the averaged weights.

    Args:
        task: the network, its data and its losses.
        config: the loop's values.
        folder: the run's folder: `checkpoints/`, `tensorboard/`, `losses.jsonl` and `pictures/` are written there.
        resume: go on from the newest valid checkpoint, if there is one.

    Raises:
        PipelineError: `MAX_BAD_STEPS` steps in a row had a non-finite loss, or a checkpoint cannot be written.
        Interrupted: SIGTERM came; the state is saved.
    """
    began = time.monotonic()
    accelerator = _accelerator(config)
    task.move(accelerator.device)
    optimizer = make_optimizer(task.parameter_groups(), config, fused=accelerator.device.type in ("cpu", "cuda"))
    scheduler = get_cosine_schedule_with_warmup(optimizer, round(config.warmup_fraction * config.steps), config.steps)
    if config.compile:
        task.network.compile()
    task.prepared, prepared_optimizer = accelerator.prepare(task.network, optimizer)
    ema = Ema(task.state(), config.ema_decay)
    progress, first = Progress(), 0

    saved = checkpoint.load_newest(folder / "checkpoints") if resume else None
    if saved is not None:
        first, progress = saved.step, Progress(**saved.progress)
        task.load_state(saved.weights)
        ema.load(saved.ema, progress.ema_updates)
        optimizer.load_state_dict(saved.optimizer)
        scheduler.load_state_dict(saved.scheduler)
        if accelerator.scaler is not None and saved.scaler:
            accelerator.scaler.load_state_dict(saved.scaler)
        checkpoint.restore_rng(saved.rng)
        log.info("%s: going on from step %d", task.name, first)

    def save(step: int) -> None:
        progress.ema_updates = ema.updates
        state = checkpoint.TrainingState(
            step=step,
            weights=task.state(),
            ema=ema.shadow,
            optimizer=optimizer.state_dict(),
            scheduler=scheduler.state_dict(),
            progress=vars(progress),
            scaler=accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
        )
        checkpoint.save(folder / "checkpoints", state, keep=config.keep_checkpoints)

    def validate(step: int) -> None:
        if str(step) not in progress.validations:
            with ema.applied(), torch.no_grad(), _evaluating(task):
                progress.validations[str(step)] = task.validate(step)
        for name, value in progress.validations[str(step)].items():
            writer.add_scalar(f"validation/{name}", value, step)

    loader = _loader(task, config, accelerator, start=first * config.accumulation)
    with (
        _log_files(folder, first, purge=saved is not None) as (writer, lines),
        _stop_on_sigterm() as stop,
        tqdm(total=config.steps, initial=first, desc=task.name, unit="step", mininterval=1.0) as bar,
    ):
        if first == 0:
            validate(0)
        losses = StepLosses({})
        for step in range(first, config.steps):
            finite, used = True, 0
            for batch in loader.next_window(config.accumulation):
                with accelerator.accumulate(task.prepared):
                    with accelerator.autocast():
                        losses = task.losses(_to_device(batch, accelerator.device), step)
                    total = losses.total()
                    progress.micro_batches += 1
                    if total is None:
                        continue
                    finite = finite and bool(torch.isfinite(total))
                    if not finite:
                        continue
                    if config.gradient_norm_every and step % config.gradient_norm_every == 0:
                        losses.numbers |= gradient_norms(losses)
                    accelerator.backward(total)
                    used += 1
            norm = accelerator.clip_grad_norm_(_trainable(task), config.max_grad_norm) if finite and used else None
            if norm is not None and not torch.isfinite(norm) and accelerator.scaler is None:
                finite = False
            if finite and used:
                prepared_optimizer.step()
                ema.update()
                progress.bad_in_a_row = 0
            elif not finite:
                progress.bad_steps += 1
                progress.bad_in_a_row += 1
                log.warning("%s: step %d skipped, its loss is not finite", task.name, step)
                if progress.bad_in_a_row >= MAX_BAD_STEPS:
                    raise PipelineError(
                        f"{task.name}: the loss was not finite in {MAX_BAD_STEPS} steps in a row, up to step {step}",
                        file=folder,
                        remedy="lower the learning rate or use precision bf16 or fp32; the last checkpoint is kept",
                    )
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)

            _log_step(writer, lines, step, losses, norm, scheduler.get_last_lr()[0])
            bar.update()
            done = step + 1
            if done % config.validate_every == 0 or done == config.steps:
                validate(done)
            if done % config.checkpoint_every == 0 or done == config.steps or stop.is_set():
                save(done)
            if stop.is_set() and done < config.steps:
                raise Interrupted(
                    f"{task.name}: stopped by SIGTERM after step {done} of {config.steps}; the state is saved",
                    file=folder,
                    remedy="run the same command again to go on from there",
                )

    validate_end = progress.validations[str(config.steps)]
    ema.copy_to_source()
    task.prepared = task.network = accelerator.unwrap_model(task.prepared, keep_fp32_wrapper=False)
    with torch.no_grad(), _evaluating(task):
        pictures = task.pictures(folder / "pictures")
    task.network.eval()
    return LoopResult(
        steps=config.steps,
        start=progress.validations.get("0", {}),
        end=validate_end,
        bad_steps=progress.bad_steps,
        seconds=time.monotonic() - began,
        pictures=pictures,
        last_losses={name: float(value.detach()) for name, value in losses.raw.items()},
    )


def make_optimizer(groups: list[dict[str, Any]], config: LoopConfig, *, fused: bool) -> torch.optim.Optimizer:
    """AdamW, or 8-bit AdamW from bitsandbytes.

    Raises:
        PipelineError: there is nothing to train, or bitsandbytes is not installed.
    """
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise PipelineError("no parameter is trainable", remedy="set lora_rank or finetune_blocks in the profile")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=fused)
    try:
        import bitsandbytes
    except ImportError as error:
        raise PipelineError(
            "optimizer adamw8bit needs the package bitsandbytes, which is not installed",
            remedy="pip install bitsandbytes (with an NVIDIA GPU), or set optimizer: adamw",
        ) from error
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, weight_decay=config.weight_decay)
    return optimizer


def gradient_norms(losses: StepLosses) -> dict[str, float]:
    """Norm of each weighted term's gradient with regard to the probe (the network's prediction)."""
    if losses.probe is None or not losses.probe.requires_grad:
        return {}
    norms = {}
    for name, value in losses.raw.items():
        if value.requires_grad:
            weighted = value * losses.weights.get(name, 1.0)
            (gradient,) = torch.autograd.grad(weighted, losses.probe, retain_graph=True, allow_unused=True)
            norms[f"gradient_norm/{name}"] = 0.0 if gradient is None else float(gradient.float().norm())
    return norms


def _accelerator(config: LoopConfig) -> Accelerator:
    for state in (AcceleratorState, GradientState, PartialState):  # one process may train several networks in turn
        if not torch.distributed.is_initialized():
            state._reset_state()
    precision = "no" if config.precision == "fp32" else config.precision
    try:
        return Accelerator(mixed_precision=precision, gradient_accumulation_steps=config.accumulation)
    except ValueError as error:
        raise PipelineError(
            f"precision {config.precision} is not possible here ({error})", remedy="set precision: bf16 or fp32"
        ) from error


class _Windows:
    """Micro-batches in groups of one accumulation window."""

    def __init__(self, loader: DataLoader[Batch]) -> None:
        self.iterator = iter(loader)

    def next_window(self, size: int) -> Iterator[Batch]:
        for _ in range(size):
            yield next(self.iterator)


def _loader(task: Task, config: LoopConfig, accelerator: Accelerator, *, start: int) -> _Windows:
    sampler = task.batches(config, start, accelerator.process_index, accelerator.num_processes)
    loader = DataLoader(
        task.dataset,
        batch_sampler=sampler,
        num_workers=config.workers,
        collate_fn=task.collate,
        pin_memory=accelerator.device.type == "cuda",
        persistent_workers=config.workers > 0,
        generator=torch.Generator().manual_seed(config.seed),  # its base seed must not touch the global generator
    )
    return _Windows(loader)


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _trainable(task: Task) -> list[torch.nn.Parameter]:
    return [parameter for parameter in task.network.parameters() if parameter.requires_grad]


@contextmanager
def _evaluating(task: Task) -> Iterator[None]:
    """Evaluation mode, and random numbers that leave the training's generators as they were."""
    training = task.network.training
    task.network.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        task.network.train(training)


@contextmanager
def _stop_on_sigterm() -> Iterator[threading.Event]:
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _log_files(folder: Path, first: int, *, purge: bool) -> Iterator[tuple[SummaryWriter, Any]]:
    """TensorBoard and `losses.jsonl` (one line per step), both cut back to step `first` on resume."""
    path = folder / "losses.jsonl"
    kept = b""
    if purge and path.exists():
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n") and json.loads(line)["step"] < first:
                kept += line
    write_bytes(path, kept)
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first if purge else None)
    try:
        with path.open("a", encoding="utf-8", buffering=1) as lines:
            yield writer, lines
    finally:
        writer.close()


def _log_step(
    writer: SummaryWriter, lines: Any, step: int, losses: StepLosses, norm: Tensor | None, rate: float
) -> None:
    numbers = {f"loss/{name}": float(value.detach()) for name, value in losses.raw.items()}
    numbers |= {
        f"weighted/{name}": numbers[f"loss/{name}"] * losses.weights[name]
        for name in losses.raw
        if name in losses.weights
    }
    numbers |= losses.numbers | {"learning_rate": rate}
    if norm is not None:
        numbers["gradient_norm/total"] = float(norm)
    for name, value in numbers.items():
        writer.add_scalar(name, value, step)
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    lines.write(json.dumps({"step": step} | finite) + "\n")
