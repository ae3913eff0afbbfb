"""A training's losses over its steps as a small SVG, for the UI: TensorBoard has them in full.

Belongs here: reading losses.jsonl and drawing. Does not belong here: what is logged (`training.journal`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

Points = Sequence[tuple[float, float]]
"""(step, loss), by step."""

MAX_POINTS = 120
"""A longer curve is drawn as the means of so many stretches."""

_WIDTH, _HEIGHT, _GAP, _COLUMNS = 250, 130, 12, 2


def read_losses(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Loss name -> its finite values by step; a torn last line is left out."""
    losses: dict[str, list[tuple[float, float]]] = {}
    for position, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        for name, value in values.items():
            if name.startswith("loss/") and isinstance(value, int | float) and math.isfinite(value):
                losses.setdefault(name.removeprefix("loss/"), []).append((values.get("step", position), float(value)))
    return losses


def thinned(points: Points, count: int = MAX_POINTS) -> Points:
    """At most `count` points: the means of equal stretches."""
    if len(points) <= count:
        return points
    edges = [round(i * len(points) / count) for i in range(count + 1)]
    stretches = [points[start:end] for start, end in pairwise(edges)]
    return [
        (sum(step for step, _ in part) / len(part), sum(loss for _, loss in part) / len(part)) for part in stretches
    ]


def drawn(losses: Mapping[str, Points]) -> str:
    """An SVG with a panel per loss, each with its own scale, its first and its last value."""
    rows = math.ceil(len(losses) / _COLUMNS)
    width, height = _COLUMNS * (_WIDTH + _GAP), rows * (_HEIGHT + _GAP)
    panels = [
        f'<g transform="translate({i % _COLUMNS * (_WIDTH + _GAP)},{i // _COLUMNS * (_HEIGHT + _GAP)})">'
        f"{_panel(name, thinned(points))}</g>"
        for i, (name, points) in enumerate(losses.items())
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="11"><rect width="{width}" height="{height}" fill="#fff"/>{"".join(panels)}</svg>'
    )


def _panel(name: str, points: Points) -> str:
    steps, values = [step for step, _ in points], [loss for _, loss in points]
    low, high = min(values), max(values)
    across, up = (steps[-1] - steps[0]) or 1, (high - low) or 1
    line = " ".join(
        f"{(step - steps[0]) / across * _WIDTH:.1f},{24 + (high - loss) / up * (_HEIGHT - 30):.1f}"
        for step, loss in points
    )
    title = f"{escape(name)}: {values[0]:.4g} to {values[-1]:.4g} (step {steps[-1]:.0f})"
    return (
        f'<text x="2" y="14">{title}</text>'
        f'<rect y="20" width="{_WIDTH}" height="{_HEIGHT - 20}" fill="none" stroke="#ccc"/>'
        f'<polyline points="{line}" fill="none" stroke="#3b6fb6" stroke-width="1.3"/>'
    )
