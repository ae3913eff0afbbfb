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

from hair_pipeline.profile import Profile
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
