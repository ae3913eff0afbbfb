"""Rendering of the two reports: one self-contained page each, no script, nothing loaded from anywhere.

Belongs here: formatting of numbers, the interval drawings, the templates' environment. Does not belong here: any
computation of a metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from hair_pipeline.files import write_bytes

_WIDTH, _PAD = 150.0, 6.0


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; an en dash where there is none."""
    return "–" if value is None else f"{_no_minus_zero(value, digits):.{digits}f}"


def percent(value: float | None) -> str:
    """A relative change, signed; an en dash where there is none."""
    return "–" if value is None else f"{_no_minus_zero(value, 3):+.1%}"


def difference(value: float | None) -> str:
    """A signed difference; an en dash where there is none."""
    return "–" if value is None else f"{_no_minus_zero(value, 4):+.4f}"


def _no_minus_zero(value: float, digits: int) -> float:
    return round(value, digits) + 0.0


def interval_rows(estimates: list[dict[str, Any] | None]) -> list[dict[str, float] | None]:
    """Places on a common axis of 0 to 150 pixels for several estimates: {"low", "mid", "high"} each, or None."""
    numbers = [
        e[key] for e in estimates if e is not None for key in ("ci_low", "value", "ci_high") if e.get(key) is not None
    ]
    if not numbers:
        return [None for _ in estimates]
    least, span = min(numbers), max(numbers) - min(numbers)

    def place(value: float) -> float:
        if span < 1e-12:
            return _WIDTH / 2
        return round(_PAD + (value - least) / span * (_WIDTH - 2 * _PAD), 1)

    rows: list[dict[str, float] | None] = []
    for estimate in estimates:
        if estimate is None or estimate.get("value") is None:
            rows.append(None)
            continue
        mid = estimate["value"]
        low = mid if estimate.get("ci_low") is None else estimate["ci_low"]
        high = mid if estimate.get("ci_high") is None else estimate["ci_high"]
        rows.append({"low": place(low), "mid": place(mid), "high": place(high)})
    return rows


def sparkline(values: Sequence[float | None]) -> list[tuple[float, float]]:
    """Points of a line through the values on a canvas of 110 x 26 pixels; missing ones are skipped."""
    known = [(i, value) for i, value in enumerate(values) if value is not None]
    least = min(value for _, value in known)
    span = max(value for _, value in known) - least
    step = 98 / max(1, len(values) - 1)
    return [
        (round(6 + i * step, 1), round(13.0 if span < 1e-12 else 21 - (value - least) / span * 16, 1))
        for i, value in known
    ]


def write_page(template: str, path: Path, **values: Any) -> Path:
    """Render a template of `evaluation/templates` and write it atomically; every text is escaped."""
    environment = Environment(
        loader=PackageLoader("hair_pipeline.evaluation", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["percent"] = percent
    environment.globals["interval_rows"] = interval_rows
    write_bytes(path, environment.get_template(template).render(**values).encode())
    return path
