"""The one training loop: every trainer runs through `run`, which reads from top to bottom like the algorithm.

Belongs here: stepping, precision, accumulation, clipping, averaging, saving, validating and stopping.
Does not belong here: what is learnt (`task` and the trainers), logs (`journal`) and the files of a run (`runs`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from hair_pipeline.errors import PipelineError, TransientError
from hair_pipeline.training import checkpoint, processes
from hair_pipeline.training.ema import Ema
from hair_pipeline.training.journal import Silence, journal
from hair_pipeline.training.sampler import WindowSampler, share
from hair_pipeline.training.stopping import Stop, StopNow, ignore_sigterm, stop_on_sigterm
from hair_pipeline.training.stopwatch import Stopwatch
from hair_pipeline.training.tally import Tally
from hair_pipeline.training.task import Batch, LoopConfig, StepLosses, Task

log = logging.getLogger(__name__)

MAX_BAD_STEPS = 10
"""So many optimizer steps in a row with a non-finite loss stop the run."""


class Interrupted(TransientError):
    """The run was asked to stop (SIGTERM) and has saved its state."""


@dataclass
class Progress:
    """The counters that go into a checkpoint besides the weights."""

    bad_steps: int = 0
    bad_in_a_row: int = 0
    ema_updates: int = 0
    validations: dict[str, dict[str, float]] = field(default_factory=dict)
    beforehand: dict[str, float] = field(default_factory=dict)
    terms: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LoopResult:
    """What a finished run measured: validation at the start and at the end, and its counters.

    Attributes:
        beforehand: numbers of `Task.before_first_step`.
        seconds: of this process; a resumed run's earlier parts are not in it.
        shares: where the time of the steps went, see `Stopwatch.shares`.
        terms: the losses that were computed at all.
    """

    steps: int
    beforehand: dict[str, float]
    start: dict[str, float]
    end: dict[str, float]
    bad_steps: int
    seconds: float
    pictures: list[Path]
    last_losses: dict[str, float]
    shares: dict[str, float]
    terms: list[str]


@dataclass
class Engine:
    """What takes an optimizer step and is saved: the optimizer, its schedule, the average and the loss scaler."""

    accelerator: Accelerator
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    ema: Ema
    trainable: list[torch.nn.Parameter]
    buffers: list[Tensor]
    prepared: Any
    kept: list[Tensor] = field(default_factory=list)

    @classmethod
    def build(cls, task: Task, config: LoopConfig) -> Engine:
        """Move the task to its device and make everything that trains it."""
        accelerator = _accelerator(config)
        task.move(accelerator.device)
        optimizer = make_optimizer(task.parameter_groups(), config, accelerator.device)
        warmup = round(config.warmup_fraction * config.steps)
        scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, config.steps)
        if config.compile:
            task.network.compile()
        processes.copy_from_main(task.state().values())
        # "evaluation mode": mixed precision without DistributedDataParallel, see `processes` for the gradients
        task.prepared = accelerator.prepare_model(task.network, evaluation_mode=True)
        trainable = [parameter for parameter in task.network.parameters() if parameter.requires_grad]
        ema = Ema(task.state(), config.ema_decay)
        if accelerator.scaler is not None:  # it starts with the first loss, which a process without work never has
            accelerator.scaler.scale(torch.zeros((), device=accelerator.device))
        buffers, prepared = list(task.network.buffers()), accelerator.prepare_optimizer(optimizer)
        return cls(accelerator, optimizer, scheduler, ema, trainable, buffers, prepared)

    def begin(self) -> None:
        """Begin a window: keep the buffers, which forward passes change, for the case that it is not applied."""
        self.kept = [buffer.clone() for buffer in self.buffers]

    def step(self, config: LoopConfig, *, apply: bool) -> Tensor | None:
        """End a window: sum the gradients over the processes, clip, step and average, or (`apply`) leave the network.

        After a step the buffers are the last process's. Without one they are what they were when the window began: a
        batch that is not finite would stay in BatchNorm's running statistics for good.

        Returns:
            The gradients' norm before clipping, None when nothing was to be applied. With a norm that is not finite the
            network stays as it is.
        """
        norm, stepped = None, False
        if apply:
            processes.sum_gradients(self.trainable)
            norm = self.accelerator.clip_grad_norm_(self.trainable, config.max_grad_norm)
            if self.accelerator.scaler is not None or bool(torch.isfinite(norm)):
                self.prepared.step()  # a loss scaler looks for overflow itself, and scales less after one
                stepped = not self.prepared.step_was_skipped
        processes.copy_from_last(self.buffers)
        if stepped:
            self.ema.update()
        else:
            for buffer, kept in zip(self.buffers, self.kept, strict=True):
                buffer.copy_(kept)
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @property
    def expects_overflow(self) -> bool:
        """Whether the loss scaler is still finding its scale: gradients that overflow are no fault then."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() > 1

    def restore(self, task: Task, saved: checkpoint.TrainingState) -> None:
        """Put a saved state back. Learning rates and weight decay are the configuration's, not the saved ones.

        The moments of another kind of optimizer mean nothing to this one: they begin anew.

        Raises:
            PipelineError: it is the state of another network.
        """
        _check_same(saved.weights, task.state())
        task.load_state(saved.weights)
        self.ema.load(saved.ema, saved.progress["ema_updates"])
        groups, moments = self.optimizer.state_dict()["param_groups"], saved.optimizer["state"]
        if not _are_moments_of(self.optimizer, moments):
            log.warning("%s: the saved moments are another optimizer's: they begin anew", task.name)
            moments = {}
        try:
            self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        except ValueError as error:
            raise PipelineError(
                f"the saved optimizer is another one ({error})", remedy="start over with --no-resume"
            ) from error
        self.scheduler.load_state_dict(saved.scheduler | {"base_lrs": self.scheduler.base_lrs})
        for group, base, factor in zip(
            self.optimizer.param_groups, self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(self.scheduler.last_epoch)
        if self.accelerator.scaler is not None and saved.scaler:
            self.accelerator.scaler.load_state_dict(saved.scaler)
        checkpoint.restore_rng(saved.rng, processes.rank())

    def state(self, task: Task, step: int, progress: Progress) -> checkpoint.TrainingState:
        """Everything to save after `step` steps (of all processes: each has random numbers of its own)."""
        progress.ema_updates = self.ema.updates
        scaler = self.accelerator.scaler
        return checkpoint.TrainingState(
            step=step,
            weights=task.state(),
            ema=self.ema.shadow,
            optimizer=self.optimizer.state_dict(),
            scheduler=self.scheduler.state_dict(),
            progress=vars(progress),
            scaler=scaler.state_dict() if scaler is not None else {},
            rng=checkpoint.joined_rng(processes.gather(checkpoint.capture_rng())),
        )


def run(task: Task, config: LoopConfig, folder: Path, *, resume: bool = True) -> LoopResult:
    """Train `task` for `config.steps` optimizer steps; afterwards its network holds the averaged weights.

    Started by torchrun, every process calls it. They share the micro-batches of each accumulation window, so the
    result is the single process's, up to the order in which gradients are summed; the first one alone writes files.

    Args:
        task: the network, its data and its losses.
        config: the loop's values.
        folder: the run's folder: `checkpoints/`, `tensorboard/`, `losses.jsonl` and `pictures/` are written there.
        resume: go on from the newest valid checkpoint, if there is one.

    Raises:
        PipelineError: `MAX_BAD_STEPS` steps in a row had a non-finite loss, the checkpoint belongs to another network
            or to a longer run, or the disk is full.
        Interrupted: SIGTERM came; the state is saved.
    """
    began = time.monotonic()
    engine, progress, first = Engine.build(task, config), Progress(), 0
    saved = checkpoint.load_newest(folder / "checkpoints") if resume else None
    if saved is not None:
        first, progress = saved.step, Progress(**saved.progress)
        if first > config.steps:
            raise PipelineError(
                f"{task.name}: the checkpoint has {first} steps behind it, the configuration asks for {config.steps}",
                file=folder,
                remedy=f"ask for at least {first} steps, or start over with --no-resume",
            )
        engine.restore(task, saved)
        log.info("%s: going on from step %d", task.name, first)
    if len(set(processes.gather(first))) > 1:
        raise PipelineError(
            "the processes do not see the same checkpoints",
            file=folder,
            remedy="put the training root on a shared disk",
        )
    _warn_of_idle_processes(task, config)

    device, main = engine.accelerator.device, processes.is_main()
    own = share(config.accumulation, processes.rank(), processes.world())
    loader = _batches(task, config, device, start=first)
    logs = journal(folder, task.name, first=first, steps=config.steps, keep=saved is not None)
    clock = Stopwatch()
    pictures: list[Path] = []
    with logs if main else nullcontext(Silence()) as book, stop_on_sigterm() as stop:

        def save(step: int) -> None:
            with clock.measure("save"):
                book.sync()
                state = engine.state(task, step, progress)
                if main:
                    checkpoint.save(folder / "checkpoints", state, keep=config.keep_checkpoints)
                processes.barrier()

        def validate(step: int) -> None:
            with clock.measure("validate"), _interruptible(stop, task, step, folder):
                if main:
                    with engine.ema.applied(), torch.no_grad(), _evaluating(task):
                        progress.validations[str(step)] = task.validate(step)
                        pictures[:] = task.pictures(folder / "pictures")
                    book.validation(step, progress.validations[str(step)], pictures)
                progress.validations = processes.gather(progress.validations)[0]

        if _due(first, config.validate_every, config.steps, zero=True) and str(first) not in progress.validations:
            validate(first)
        if first == 0:
            with clock.measure("first lesson"):
                progress.beforehand = task.before_first_step()
                processes.copy_from_main(task.state().values())
        last: dict[str, float] = {}
        for step in range(first, config.steps):
            tally = Tally()
            engine.begin()
            for _ in own:
                with clock.measure("data"):
                    batch = _to_device(next(loader), device)
                with clock.measure("compute"):
                    with engine.accelerator.autocast():
                        losses = task.losses(batch, step)
                    total = losses.total()
                    if config.gradient_norm_every and step % config.gradient_norm_every == 0:
                        losses.numbers |= gradient_norms(losses)
                    tally.add(losses, total)
                    if total is not None:
                        engine.accelerator.backward(total / config.accumulation)
            with clock.measure("compute"):
                summary = tally.close(stop=stop.requested)
                rate = float(engine.optimizer.param_groups[0]["lr"])  # the scheduler sets the next step's
                norm = engine.step(config, apply=summary.finite and summary.used > 0)
            numbers = {f"loss/{name}": value for name, value in summary.raw.items()} | summary.numbers
            numbers["learning_rate"] = rate
            if norm is not None:
                numbers["gradient_norm/total"] = float(norm)
            book.step(step, numbers, {f"time/{name}": value for name, value in clock.shares().items()})
            last = summary.raw
            progress.terms = sorted({*progress.terms, *summary.raw})

            overflow = norm is not None and not bool(torch.isfinite(norm)) and not engine.expects_overflow
            _count_bad(task, progress, step, folder, bad=not summary.finite or overflow, used=summary.used > 0)
            done = step + 1
            validating = _due(done, config.validate_every, config.steps)
            if validating or _due(done, config.checkpoint_every, config.steps) or summary.stop:
                save(done)
            if summary.stop and done < config.steps:
                raise _interrupted(task, f"after step {done} of {config.steps}", folder)
            if validating:
                validate(done)

    engine.ema.copy_to_source()
    task.prepared = task.network = engine.accelerator.unwrap_model(task.prepared, keep_fp32_wrapper=False)
    task.network.eval()
    shares = clock.shares()
    log.info("%s: shares of the steps' time: %s", task.name, {name: f"{part:.1%}" for name, part in shares.items()})
    return LoopResult(
        steps=config.steps,
        beforehand=progress.beforehand,
        start=progress.validations.get("0", {}),
        end=progress.validations[str(config.steps)],
        bad_steps=progress.bad_steps,
        seconds=time.monotonic() - began,
        pictures=pictures,
        last_losses=last,
        shares=shares,
        terms=progress.terms,
    )


def make_optimizer(groups: list[dict[str, Any]], config: LoopConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW (fused), or 8-bit AdamW (Dettmers et al. 2022) from bitsandbytes.

    Raises:
        PipelineError: there is nothing to train, or 8-bit AdamW is not possible here.
    """
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise PipelineError("no parameter is trainable", remedy="set lora_rank or finetune_blocks in the profile")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=device.type in ("cpu", "cuda"))
    if device.type != "cuda":
        raise PipelineError("optimizer adamw8bit needs an NVIDIA GPU", remedy="set optimizer: adamw in the profile")
    try:
        import bitsandbytes
    except ImportError as error:
        raise PipelineError(
            "optimizer adamw8bit needs the package bitsandbytes, which is not installed",
            remedy="uv sync --extra adam8bit, or set optimizer: adamw in the profile",
        ) from error
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, weight_decay=config.weight_decay)
    return optimizer


def _are_moments_of(optimizer: torch.optim.Optimizer, moments: Mapping[int, Mapping[str, Any]]) -> bool:
    """Whether saved moments are of the optimizer's kind: AdamW and its 8-bit form have other names for them."""
    plain = isinstance(optimizer, torch.optim.AdamW)
    return all(("exp_avg" in values) == plain for values in moments.values())


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
        state._reset_state()
    precision = "no" if config.precision == "fp32" else config.precision
    try:
        return Accelerator(mixed_precision=precision)
    except ValueError as error:
        raise PipelineError(
            f"precision {config.precision} is not possible here ({error})", remedy="set precision: bf16 or fp32"
        ) from error


def _batches(task: Task, config: LoopConfig, device: torch.device, *, start: int) -> Iterator[Batch]:
    """This process's micro-batches from optimizer step `start` on."""
    rank, world = processes.rank(), processes.world()
    sampler = WindowSampler(task.batches(config), config.accumulation, start=start, rank=rank, world=world)
    loader: DataLoader[Batch] = DataLoader(
        task.dataset,
        batch_sampler=sampler,
        num_workers=config.workers,
        worker_init_fn=ignore_sigterm,
        collate_fn=task.collate,
        pin_memory=device.type == "cuda",
        persistent_workers=config.workers > 0,
        generator=torch.Generator().manual_seed(config.seed),  # its base seed must not touch the global generator
    )
    return iter(loader)


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _due(done: int, every: int, steps: int, *, zero: bool = False) -> bool:
    """Whether something regular is due after so many steps: every so often, at the end, and (`zero`) at the start."""
    return done == steps or (done % every == 0 and (done > 0 or zero))


def _count_bad(task: Task, progress: Progress, step: int, folder: Path, *, bad: bool, used: bool) -> None:
    """Count a skipped step; raise after `MAX_BAD_STEPS` in a row."""
    if not bad:
        progress.bad_in_a_row = 0 if used else progress.bad_in_a_row
        return
    progress.bad_steps += 1
    progress.bad_in_a_row += 1
    log.warning("%s: step %d skipped, its loss or gradient is not finite", task.name, step)
    if progress.bad_in_a_row >= MAX_BAD_STEPS:
        raise PipelineError(
            f"{task.name}: the loss was not finite in {MAX_BAD_STEPS} steps in a row, up to step {step}",
            file=folder,
            remedy="lower the learning rate or use precision bf16 or fp32; the last checkpoint is kept",
        )


def _check_same(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    different = sorted(saved.keys() ^ own.keys()) or [n for n in sorted(own) if own[n].shape != saved[n].shape]
    if different:
        raise PipelineError(
            f"the checkpoint is of another network: {different[0]} and {len(different) - 1} more tensors differ",
            remedy="start over with --no-resume, or use the configuration it was saved with",
        )


def _warn_of_idle_processes(task: Task, config: LoopConfig) -> None:
    world = processes.world()
    if processes.is_main() and config.accumulation % world:
        log.warning(
            "%s: %d micro-batches per step cannot be shared evenly by %d processes, some will wait: "
            "set gradient_accumulation_steps to a multiple of %d",
            task.name, config.accumulation, world, world,
        )  # fmt: skip


@contextmanager
def _evaluating(task: Task) -> Iterator[None]:
    """Evaluation mode, and random numbers that leave the training's generators as they were."""
    training = task.network.training
    task.network.eval()
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            yield
    finally:
        task.network.train(training)


@contextmanager
def _interruptible(stop: Stop, task: Task, step: int, folder: Path) -> Iterator[None]:
    """SIGTERM ends what is within at once: the state after `step` is saved already."""
    try:
        with stop.at_once():
            yield
    except StopNow:
        raise _interrupted(task, f"during the validation after step {step}", folder) from None


def _interrupted(task: Task, when: str, folder: Path) -> Interrupted:
    return Interrupted(
        f"{task.name}: stopped by SIGTERM {when}; the state is saved",
        file=folder,
        remedy="run the same command again to go on from there",
    )
