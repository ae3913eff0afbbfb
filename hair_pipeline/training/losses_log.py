"""What the logged losses of a finished run say: were they finite, did they fall?

Belongs here: reading `losses.jsonl`. Does not belong here: writing it (`journal`).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LOSSES_FILE = "losses.jsonl"
PART = 3
"""The first and the last third of the values are compared: the loss of a single step says little."""
MIN_VALUES = 5
"""In a third, below which a loss that is computed now and then says nothing about the run."""
RISE = 3.0
"""Standard errors above which a loss has risen by more than its noise."""


@dataclass(frozen=True)
class LossCurve:
    """One loss of one run.

    Attributes:
        name: folder of the log and name of the loss.
        start, end: means over the first and the last third of the values.
        noise: standard error of their difference; None with fewer than `MIN_VALUES` on either side.
        steps: at which it was computed.
        missing: steps at which it was not finite: the log leaves such values out. Known of losses of every step only.
    """

    name: str
    start: float
    end: float
    noise: float | None
    steps: int
    missing: int

    @property
    def ratio(self) -> float:
        """Its end as a share of its start."""
        return self.end / self.start if self.start else 1.0

    @property
    def rose(self) -> bool:
        """Did it rise by more than its noise?"""
        return self.noise is not None and self.end - self.start > RISE * self.noise


def mean_ratio(curves: Sequence[LossCurve]) -> float | None:
    """Geometric mean of the losses' end as a share of their start; None without a loss that has a share.

    Only losses with values enough to say something count, unless none has: a run of a few steps.
    """
    known = [curve for curve in curves if curve.ratio > 0]
    counted = [curve for curve in known if curve.noise is not None] or known
    return math.exp(statistics.fmean(math.log(curve.ratio) for curve in counted)) if counted else None


def loss_curves(run_dir: Path) -> list[LossCurve]:
    """Every loss of a run (a run may have several logs), by name."""
    curves = []
    for path in sorted(run_dir.rglob(LOSSES_FILE)):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        names = sorted({name for line in lines for name in line if name.startswith("loss/")})
        for name in names:
            values = [line[name] for line in lines if name in line]
            missing = len(lines) - len(values) if len(values) > len(lines) / 2 else 0
            part = max(1, len(values) // PART)
            first, last = values[:part], values[-part:]
            enough = part >= MIN_VALUES
            noise = math.sqrt((statistics.variance(first) + statistics.variance(last)) / part) if enough else None
            folder = path.parent.relative_to(run_dir).as_posix()
            means = statistics.fmean(first), statistics.fmean(last)
            curves.append(LossCurve(f"{folder}/{name.removeprefix('loss/')}", *means, noise, len(values), missing))
    return curves
