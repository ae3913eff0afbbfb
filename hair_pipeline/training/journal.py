"""What a training leaves for people: TensorBoard, `losses.jsonl` and the progress bar, all from the first process.

Belongs here: writing numbers and pictures down, and cutting the logs back on resume. Does not belong
here: computing them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import decode_image, write_bytes
from hair_pipeline.training.losses_log import LOSSES_FILE

_TENSORBOARD = "tensorboard"


class Journal:
    """The open logs of a run. Open one with `journal`."""

    def __init__(self, folder: Path, writer: SummaryWriter, lines: TextIO, bar: tqdm) -> None:
        self._folder = folder
        self._writer = writer
        self._lines = lines
        self._bar = bar

    def step(self, step: int, numbers: Mapping[str, float], times: Mapping[str, float]) -> None:
        """Write a step's numbers down. Times go to TensorBoard alone: `losses.jsonl` is the same in every repetition.

        Raises:
            PipelineError: the disk is full.
        """
        for name, value in (*numbers.items(), *times.items()):
            self._writer.add_scalar(name, value, step)
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        try:
            self._lines.write(json.dumps({"step": step} | finite) + "\n")
        except OSError as error:
            raise PipelineError(
                f"cannot be written ({error})",
                file=self._folder / LOSSES_FILE,
                remedy="free some disk space and run the same command again: it goes on from the last checkpoint",
            ) from error
        self._bar.update()

    def validation(self, step: int, numbers: Mapping[str, float], pictures: list[Path]) -> None:
        """Add the results of a validation to TensorBoard."""
        for name, value in numbers.items():
            self._writer.add_scalar(f"validation/{name}", value, step)
        for path in pictures:
            image: np.ndarray = decode_image(path.read_bytes())
            self._writer.add_image(f"validation/{path.stem}", image, step, dataformats="HWC")
        self._bar.set_postfix({name: f"{value:.3g}" for name, value in list(numbers.items())[:2]}, refresh=False)

    def sync(self) -> None:
        """Bring the lines to the disk: a checkpoint that is there after a power cut finds its losses there, too."""
        os.fsync(self._lines.fileno())


class Silence(Journal):
    """The journal of the processes that keep none."""

    def __init__(self) -> None:
        """Nothing to open."""

    def step(self, step: int, numbers: Mapping[str, float], times: Mapping[str, float]) -> None:
        """Nothing."""

    def validation(self, step: int, numbers: Mapping[str, float], pictures: list[Path]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""


@contextmanager
def journal(folder: Path, name: str, *, first: int, steps: int, keep: bool) -> Iterator[Journal]:
    """Open the logs of a run.

    Args:
        folder: the run's folder.
        name: shown in the progress bar.
        first, steps: the step it begins with, and how many there are in all.
        keep: keep what was logged before step `first` (resume) instead of beginning anew.
    """
    path = folder / LOSSES_FILE
    write_bytes(path, _before(path, first) if keep else b"")
    writer = SummaryWriter(str(folder / _TENSORBOARD), purge_step=first if keep else None)
    try:
        with (
            path.open("a", encoding="utf-8", buffering=1) as lines,
            tqdm(total=steps, initial=first, desc=name, unit="step", mininterval=1.0) as bar,
        ):
            yield Journal(folder, writer, lines, bar)
    finally:
        writer.close()


def _before(path: Path, step: int) -> bytes:
    """The lines of earlier steps; a half-written one is left out."""
    kept = b""
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            if line.endswith(b"\n") and json.loads(line)["step"] < step:
                kept += line
        except (ValueError, KeyError, TypeError):
            continue
    return kept
