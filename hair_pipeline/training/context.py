"""What a trainer gets and gives back.

Belongs here: the small types between `entry` and the trainers. Does not belong here: files of a run (`runs`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from hair_pipeline.errors import PipelineError
from hair_pipeline.profile import BaseTrainingConfig, NetworkTraining, Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.loop import LoopResult
from hair_pipeline.training.loop import run as run_loop
from hair_pipeline.training.task import LoopConfig, Task


@dataclass(frozen=True)
class Context:
    """One run: settings, profile, its folder, and whether to go on where it stopped."""

    settings: Settings
    profile: Profile
    run_dir: Path
    resume: bool = True

    def loop(self, task: Task, config: LoopConfig) -> LoopResult:
        """Train `task` in a folder of its own name below the run's."""
        return run_loop(task, config, self.run_dir / task.name, resume=self.resume)


@dataclass(frozen=True)
class Finished:
    """A trained network.

    Attributes:
        save: writes the final weights into an empty folder.
        metrics: measured numbers.
        notes: subject -> why something was not measured or trained.
        pictures: small JPEGs.
    """

    save: Callable[[Path], None]
    metrics: dict[str, float]
    notes: dict[str, str] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)


def seed_everything(seed: int) -> None:
    """Seed the generators that initialise weights."""
    random.seed(seed)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)


def base_training(context: Context) -> BaseTrainingConfig:
    """The values of the sample models' recipe.

    Raises:
        PipelineError: this profile has none.
    """
    config = context.profile.base_training
    if config is None:
        raise PipelineError(
            "this profile trains none of the sample models",
            remedy="run: hair-pipeline sample-models, or set base_training in the profile",
        )
    return config


def network_loop(config: NetworkTraining, seed: int) -> LoopConfig:
    """The loop's values for one of the sample models."""
    return LoopConfig(
        steps=config.steps,
        batch_size=config.batch_size,
        checkpoint_every=max(100, config.steps // 20),
        validate_every=max(1, config.steps // 4),
        ema_decay=config.ema_decay,
        weight_decay=1e-3,
        gradient_norm_every=0,
        seed=seed,
    )
