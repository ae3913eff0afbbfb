"""What the terminal shows while the lineage runs, and at its end.

Belongs here: words and progress lines. Does not belong here: decisions about what runs (`launch.py`).
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from hair_pipeline.files import read_json
from hair_pipeline.orchestration.instance import dagster_home
from hair_pipeline.orchestration.launch import Outcome, Step
from hair_pipeline.orchestration.terminal import newest_progress
from hair_pipeline.settings import PROJECT_ROOT, Settings


class StepProgress:
    """A spinner with a clock per running step, the newest progress bar of their output, and a line per ended step.

    Args:
        console: where to draw.
        log: the file that the steps' output goes to.
    """

    def __init__(self, console: Console, log: Path) -> None:
        self._console = console
        self._log = log
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._running: dict[str, tuple[TaskID, float]] = {}
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> StepProgress:
        self._progress.start()
        if self._console.is_terminal:
            self._watcher.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._progress.stop()

    def on_step(self, step: Step) -> None:
        """Show a step's start or end, or what it waits for."""
        if step.kind == "wait":
            self._console.print(f"   [yellow]waits[/yellow]  {step.assets}: {escape(step.message)}", soft_wrap=True)
            return
        if step.kind == "start":
            self._running[step.assets] = (self._progress.add_task(step.assets, total=None), time.monotonic())
            return
        task, started = self._running.pop(step.assets, (None, time.monotonic()))
        if task is not None:
            self._progress.remove_task(task)
        mark = {"success": "[green]done[/green]  ", "retry": "[yellow]again[/yellow] "}.get(
            step.kind, "[red]failed[/red]"
        )
        self._console.print(f"   {mark} {step.assets}  {time.monotonic() - started:.1f} s")
        if step.message:
            self._console.print(f"          {escape(step.message)}", soft_wrap=True)

    def _watch(self) -> None:
        """Show the newest progress bar behind the step that started last: the one that trains, if one does."""
        while not self._stopped.wait(0.5):
            bar = newest_progress(self._log)
            for name, (task, _) in list(self._running.items())[-1:]:
                self._progress.update(task, description=f"{name}  {bar}" if bar else name)


def summary_lines(settings: Settings, outcome: Outcome) -> Iterator[str]:
    """The closing words of `demo` and `run`: what was done, where the report is, what comes next."""
    yield ""
    if outcome.upstream_left:
        yield (
            f"out of date, but not selected: {', '.join(outcome.upstream_left)}. What was selected is made from it: "
            "select it too (with all upstream: `+key:NAME`), or leave --select out"
        )
    elif not outcome.materialised and not outcome.failures:
        yield outcome.if_nothing
    for warning in outcome.warnings:
        yield f"check: {warning}"
    for name, why in outcome.faults.items():
        yield f"FAILED {name}: {why}"
    for why in outcome.refusals.values():
        yield f"release gate: {why}"
    if outcome.faults:
        yield "Mend the cause and run the same command again: what is done stays done."
    yield from _reports(settings)
    home = dagster_home(settings)
    prefix = "" if home == PROJECT_ROOT / "data" / "dagster" else f"DAGSTER_HOME={shlex.quote(str(home))} "
    yield f"Dagster UI:  {prefix}uv run dagster dev"
    yield from _next_step(settings)


def _reports(settings: Settings) -> Iterator[str]:
    for title, kind in (("Eval report", "eval"), ("A/B report ", "ab")):
        pointer = settings.reports / kind / "current.json"
        if pointer.exists():
            values = read_json(pointer)
            verdict = f"  (verdict: {values['verdict']})" if "verdict" in values else ""
            yield f"{title}: {settings.reports / kind / values['folder'] / 'report.html'}{verdict}"


def _next_step(settings: Settings) -> Iterator[str]:
    from hair_pipeline.release.registry_file import Registry

    registry = Registry(settings.registry_path)
    if promotable := registry.promotable():
        version, to_be_signed = list(promotable.items())[-1]
        if to_be_signed:
            yield f"Next step:   version {version} waits for a person's sign-off. Look at the A/B report, then:"
            yield f"  uv run hair-pipeline registry sign-off {version} --reviewer YOUR_NAME --decision approve"
        else:
            yield f"Next step:   version {version} is signed off; to put it into production:"
        yield f"  uv run hair-pipeline registry promote {version}"
    elif production := registry.production():
        yield f"Production:  {production}"
