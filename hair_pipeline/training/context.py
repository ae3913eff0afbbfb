"""What a trainer gets and gives back.

Belongs here: the small types between `entry` and the trainers. Does not belong here: files of a run (`runs`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch

from hair_pipeline.files import encode_image, write_bytes
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.loop import LoopResult
from hair_pipeline.training.loop import run as run_loop
from hair_pipeline.training.task import LoopConfig, Task

MAX_PICTURE_BYTES = 20_000


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


def write_picture(path: Path, image: np.ndarray) -> Path:
    """Write an RGB image as a JPEG of at most `MAX_PICTURE_BYTES`: lower quality first, then smaller."""
    while True:
        for quality in (85, 70, 50):
            data = encode_image(image, ".jpg", quality)
            if len(data) <= MAX_PICTURE_BYTES:
                write_bytes(path, data)
                return path
        image = cv2.resize(image, (image.shape[1] * 3 // 4, image.shape[0] * 3 // 4), interpolation=cv2.INTER_AREA)


def picture_grid(rows: list[list[np.ndarray]], side: int = 96) -> np.ndarray:
    """Rows of RGB images (missing places black) as one picture of `side`-pixel cells."""
    width = max(len(row) for row in rows)
    canvas = np.zeros((len(rows) * side, width * side, 3), np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            cell = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
            canvas[y * side : (y + 1) * side, x * side : (x + 1) * side] = cell
    return canvas
