"""What the logged losses of a finished run say: were they finite, did they fall?

Belongs here: reading `losses.jsonl`. Does not belong here: writing it (`journal`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

LOSSES_FILE = "losses.jsonl"
TENTH = 10
"""The first and the last tenth of the steps are compared; a single step says little."""


@dataclass(frozen=True)
class LossCurve:
    """One loss of one run.

    Attributes:
        name: folder of the log and name of the loss.
        start, end: means over the first and the last tenth of the steps at which it was computed.
        steps: at which it was computed.
        missing: steps at which it was not finite: the log leaves such values out. Known of losses of every step only.
    """

    name: str
    start: float
    end: float
    steps: int
    missing: int

    @property
    def ratio(self) -> float:
        """Its end as a share of its start."""
        return self.end / self.start if self.start else 1.0


def loss_curves(run_dir: Path) -> list[LossCurve]:
    """Every loss of a run (a run may have several logs), by name."""
    curves = []
    for path in sorted(run_dir.rglob(LOSSES_FILE)):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        names = sorted({name for line in lines for name in line if name.startswith("loss/")})
        for name in names:
            values = [line[name] for line in lines if name in line]
            missing = len(lines) - len(values) if len(values) > len(lines) / 2 else 0
            part = max(1, len(values) // TENTH)
            start, end = sum(values[:part]) / part, sum(values[-part:]) / part
            folder = path.parent.relative_to(run_dir).as_posix()
            curves.append(LossCurve(f"{folder}/{name.removeprefix('loss/')}", start, end, len(values), missing))
    return curves
