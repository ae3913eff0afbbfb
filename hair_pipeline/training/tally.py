"""The losses of one accumulation window: summed without waiting for the device, then averaged over all processes.

Belongs here: what becomes of the losses of several micro-batches. Does not belong here: logging them (`journal`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hair_pipeline.training import processes
from hair_pipeline.training.task import StepLosses


@dataclass(frozen=True)
class StepSummary:
    """What all processes agree on at the end of a window.

    Attributes:
        finite: no micro-batch of any process had a non-finite loss.
        used: how many micro-batches had a loss at all.
        stop: some process was asked to stop.
        raw: each term's unweighted value, the mean over the micro-batches that had it.
        numbers: the same for further numbers, and for the weighted terms (`weighted/<name>`).
    """

    finite: bool
    used: int
    stop: bool
    raw: dict[str, float]
    numbers: dict[str, float]


@dataclass
class Tally:
    """Collects the losses of a window. Nothing is read back from the device before `close`."""

    used: int = 0
    _raw: dict[str, list[Tensor]] = field(default_factory=dict)
    _numbers: dict[str, list[float]] = field(default_factory=dict)
    _weights: dict[str, float] = field(default_factory=dict)
    _totals: list[Tensor] = field(default_factory=list)

    def add(self, losses: StepLosses, total: Tensor | None) -> None:
        """Take in a micro-batch; `total` is None when no term applied to it."""
        for name, value in losses.raw.items():
            self._raw.setdefault(name, []).append(value.detach().float())
        for name, number in losses.numbers.items():
            self._numbers.setdefault(name, []).append(number)
        self._weights |= losses.weights
        if total is not None:
            self._totals.append(total.detach().float())
            self.used += 1

    def close(self, *, stop: bool) -> StepSummary:
        """Read the values back (one transfer) and exchange them with the other processes."""
        names = [name for name, values in self._raw.items() for _ in values]
        stacked = [*self._totals, *(value for values in self._raw.values() for value in values)]
        values = torch.stack(stacked).tolist() if stacked else []
        finite = all(map(_is_finite, values[: self.used]))
        raw: dict[str, list[float]] = {}
        for name, value in zip(names, values[self.used :], strict=True):
            raw.setdefault(name, []).append(value)
        own = {"finite": finite, "used": self.used, "stop": stop, "raw": raw, "numbers": self._numbers}
        everyone = processes.gather(own | {"weights": self._weights})
        means = _means([one["raw"] for one in everyone])
        weights = {name: weight for one in everyone for name, weight in one["weights"].items()}
        weighted = {f"weighted/{name}": value * weights[name] for name, value in means.items() if name in weights}
        return StepSummary(
            finite=all(one["finite"] for one in everyone),
            used=sum(one["used"] for one in everyone),
            stop=any(one["stop"] for one in everyone),
            raw=means,
            numbers=weighted | _means([one["numbers"] for one in everyone]),
        )


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")  # False for NaN too


def _means(parts: list[dict[str, list[float]]]) -> dict[str, float]:
    joined: dict[str, list[float]] = {}
    for part in parts:
        for name, values in part.items():
            joined.setdefault(name, []).extend(values)
    return {name: sum(values) / len(values) for name, values in joined.items()}
