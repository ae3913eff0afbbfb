"""What a trainer gives to the loop: a network, its data, its losses and its validation.

Belongs here: the interface between `loop` and the trainers. Does not belong here: any particular trainer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from hair_pipeline.profile import StageConfig
from hair_pipeline.training.sampler import Batches, second_share

Batch = dict[str, Any]


@dataclass
class StepLosses:
    """The losses of one micro-batch.

    Attributes:
        raw: each term's unweighted value, a 0-dim tensor with gradient.
        weights: each term's weight at this step; a term without one counts 1.
        numbers: further numbers to log.
        probe: the tensor with regard to which each term's gradient norm is logged (the network's prediction).
    """

    raw: dict[str, Tensor]
    weights: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    probe: Tensor | None = None

    def total(self) -> Tensor | None:
        """The weighted sum, or None when no term applies to this batch."""
        parts = [value * self.weights.get(name, 1.0) for name, value in self.raw.items()]
        return torch.stack(parts).sum() if parts else None


@dataclass(frozen=True)
class LoopConfig:
    """The loop's own values; trainers build it from their profile section.

    Attributes:
        steps: optimizer steps in all.
        batch_size: samples per micro-batch.
        accumulation: micro-batches per optimizer step, of all processes together: each takes its share of them.
        warmup_fraction: share of the steps with linearly rising learning rate, before the cosine.
        gradient_norm_every: log each term's gradient norm every so many steps (0: never).
    """

    steps: int
    batch_size: int
    accumulation: int = 1
    warmup_fraction: float = 0.05
    weight_decay: float = 0.01
    precision: str = "fp32"
    optimizer: str = "adamw"
    max_grad_norm: float = 1.0
    ema_decay: float = 0.99
    compile: bool = False
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    validate_every: int = 500
    gradient_norm_every: int = 50
    workers: int = 0
    seed: int = 0

    @classmethod
    def of_stage(cls, config: StageConfig, images: int, patches: int = 0) -> LoopConfig:
        """The values of a stage; epochs become steps, also between validations.

        An epoch shows every whole image once; the patches mixed in come on top. Without images it shows every patch.

        Args:
            images: whole images to train on.
            patches: patches to train on, `patch_fraction` of the batches.
        """
        patch_share = second_share(images, patches, config.patch_fraction)
        counted, share = (images, 1 - patch_share) if patch_share < 1 else (patches, 1.0)
        per_step = config.batch_size * config.gradient_accumulation_steps * share
        steps = max(1, math.ceil(config.epochs * counted / per_step))
        if config.max_steps is not None:
            steps = min(steps, config.max_steps)
        return cls(
            steps=steps,
            batch_size=config.batch_size,
            accumulation=config.gradient_accumulation_steps,
            warmup_fraction=config.warmup_fraction,
            weight_decay=config.weight_decay,
            precision=config.precision,
            optimizer=config.optimizer,
            max_grad_norm=config.max_grad_norm,
            ema_decay=config.ema_decay,
            compile=config.compile,
            checkpoint_every=config.checkpoint_every,
            keep_checkpoints=config.keep_checkpoints,
            validate_every=config.validate_every or max(1, int(counted / per_step)),
            gradient_norm_every=config.gradient_norm_every,
            workers=config.workers,
            seed=config.seed,
        )


class Task(ABC):
    """One network in training.

    The loop sets `prepared` to the network as Accelerate wraps it; `losses` calls the network through it.

    Args:
        name: shown in the progress bar and in TensorBoard.
        network: the network; its trainable parameters and buffers are saved, averaged and restored.
        dataset: maps a `Draw` to a sample (a dict of tensors); random choices come from the draw's position alone.
    """

    def __init__(self, name: str, network: nn.Module, dataset: Dataset[Batch]) -> None:
        self.name = name
        self.network = network
        self.prepared: nn.Module = network
        self.dataset = dataset
        self.device = torch.device("cpu")

    @abstractmethod
    def batches(self, config: LoopConfig) -> Batches:
        """Which samples each micro-batch holds."""

    @abstractmethod
    def losses(self, batch: Batch, step: int) -> StepLosses:
        """The losses of a micro-batch on the device at optimizer step `step` (from 0)."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """AdamW parameter groups with their learning rates (`lr`)."""

    def before_first_step(self) -> dict[str, float]:
        """What is learnt ahead of the first step, after the validation at step 0; numbers about it. Not on resume."""
        return {}

    def validate(self, step: int) -> dict[str, float]:
        """Numbers on held-out data, under the averaged weights; called at step 0, regularly and at the end."""
        del step
        return {}

    def pictures(self, folder: Path) -> list[Path]:
        """Small JPEGs that show what was learnt, under the averaged weights; called after each `validate`."""
        del folder
        return []

    def collate(self, samples: list[Batch]) -> Batch:
        """Samples to a batch."""
        batch: Batch = default_collate(samples)
        return batch

    def state(self) -> dict[str, Tensor]:
        """The tensors (by reference) that training changes."""
        trainable = {name: tensor for name, tensor in self.network.named_parameters() if tensor.requires_grad}
        return trainable | dict(self.network.named_buffers())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        with torch.no_grad():
            for name, tensor in self.state().items():
                tensor.copy_(state[name])

    def move(self, device: torch.device) -> None:
        """Move everything the losses need to `device`."""
        self.device = device
        self.network.to(device)
