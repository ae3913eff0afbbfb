"""The Dagster instance that `hair-pipeline run` shares with `dagster dev`.

Belongs here: finding and opening the instance, pool sizes, and freeing what killed runs hold.
Does not belong here: the instance's configuration, which is `dagster.yaml`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import dagster as dg
import yaml
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import DefaultRunLauncher

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import make_folder, write_bytes
from hair_pipeline.orchestration.compute_tags import CPU_POOL, GPU_POOL
from hair_pipeline.orchestration.orphans import SECONDS_TO_END
from hair_pipeline.settings import PROJECT_ROOT, Settings

log = logging.getLogger(__name__)

PID_TAG = "hair_pipeline/pid"
"""Run tag: `<process id>:<its start time>` of the command that executes the run."""


def dagster_home(settings: Settings) -> Path:
    """The folder of the instance: data/dagster for the default training root, else a folder in the training root."""
    default_root = PROJECT_ROOT / "data" / "training"
    return (
        PROJECT_ROOT / "data" / "dagster"
        if settings.training_root == default_root
        else (settings.training_root / "dagster")
    )


@contextmanager
def open_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """Open the instance: $DAGSTER_HOME if it is set, else `dagster_home(settings)` configured by dagster.yaml.

    Nothing is written outside the training root when that is not the default one.

    Raises:
        PipelineError: the folder cannot be written to.
    """
    if configured := os.environ.get("DAGSTER_HOME"):
        home, opened = Path(configured), dg.DagsterInstance.get
    else:
        home, opened = dagster_home(settings), partial(_open_own, dagster_home(settings))
    with ExitStack() as stack:
        with _one_at_a_time(home):
            instance = stack.enter_context(opened())
            _prepare(instance)
        yield instance


def _open_own(home: Path) -> dg.DagsterInstance:
    write_bytes(home / "dagster.yaml", yaml.safe_dump(_configuration(home), sort_keys=False).encode())
    return dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home)))


@contextmanager
def _one_at_a_time(home: Path) -> Iterator[None]:
    """Two commands that start in the same moment would both make the tables and the pools, and one would fail."""
    make_folder(home)
    folder = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _configuration(home: Path) -> dict:
    """The repository's dagster.yaml with its storage moved to `home`, as absolute paths."""
    path = PROJECT_ROOT / "dagster.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PipelineError(
            f"cannot be read ({error.strerror})", file=path, remedy="run inside a checkout of hair-pipeline"
        ) from error
    values["storage"]["sqlite"]["base_dir"] = str(home / "storage")
    values["local_artifact_storage"]["config"]["base_dir"] = str(home / "artifacts")
    values["compute_logs"]["config"]["base_dir"] = str(home / "compute_logs")
    return values


def _prepare(instance: dg.DagsterInstance) -> None:
    _wait_for_orphans(instance)
    free_dead_runs(instance)
    if CPU_POOL not in instance.event_log_storage.get_concurrency_keys():
        instance.event_log_storage.set_concurrency_slots(CPU_POOL, os.cpu_count() or 1)
    if GPU_POOL not in instance.event_log_storage.get_concurrency_keys():
        instance.event_log_storage.set_concurrency_slots(GPU_POOL, 1)


def process_tag(pid: int | None = None) -> str | None:
    """`<pid>:<start time>` of a living process, or None: a process id alone may be used again by another process."""
    pid = pid or os.getpid()
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else f"{pid}:{fields[19]}"


def free_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs whose process was killed as failed, and free their places in the pools; returns their ids.

    Without this a `kill -9` of `hair-pipeline run`, or of the machine while the daemon runs jobs, would hold the GPU
    for ever: Dagster watches the processes of cluster launchers, not those of its default one. Runs whose steps are
    still saving keep their places; a later call frees them.
    """
    dead = [run for run in _dead_runs(instance) if not _has_living_steps(instance, run)]
    for run in dead:
        instance.report_run_failed(run, "The process that executed this run was killed.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in dead]


def _dead_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Runs that say that they run, but whose process is gone."""
    alive = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]
    dead = []
    for run in instance.get_runs(dg.RunsFilter(statuses=alive)):
        if PID_TAG in run.tags:
            tag = run.tags[PID_TAG]
            is_dead = process_tag(int(tag.split(":")[0])) != tag
        else:
            is_dead = _launched_process_is_gone(instance, run)
        if is_dead:
            dead.append(run)
    return dead


def _wait_for_orphans(instance: dg.DagsterInstance) -> None:
    """Wait until the steps of killed runs have saved and ended (`orphans`): nobody frees their places later."""
    deadline = time.monotonic() + SECONDS_TO_END
    while waiting := [run.run_id[:8] for run in _dead_runs(instance) if _has_living_steps(instance, run)]:
        if time.monotonic() > deadline:
            return
        log.warning("run %s was killed: waiting until its steps have saved and ended", ", ".join(waiting))
        time.sleep(_LOOK_EVERY)


_LOOK_EVERY = 2.0
_STEP_IN_A_PROCESS = "Executing step"
"""How Dagster's multiprocess executor begins what it says of a step's process."""


def _has_living_steps(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Is a process of one of the run's steps still there?"""
    return any(
        _runs_since(entry.dagster_event.pid, entry.timestamp)
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_WORKER_STARTED)
        if entry.dagster_event and (entry.dagster_event.message or "").startswith(_STEP_IN_A_PROCESS)
    )


_STARTED_PROCESS = re.compile(r"Started process for run \(pid: (\d+)\)")
_CLOCK_SLACK = 5.0


def _launched_process_is_gone(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Is the process of a run that the default launcher started on this machine gone? False where that is unknown."""
    if not isinstance(instance.run_launcher, DefaultRunLauncher):
        return False
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        found = _STARTED_PROCESS.search(entry.message or "")
        if found is None and entry.dagster_event is not None:
            found = _STARTED_PROCESS.search(entry.dagster_event.message or "")
        if found is not None:
            return not _runs_since(int(found[1]), entry.timestamp)
    return False


def _runs_since(pid: int | None, then: float) -> bool:
    """Is there a process with this id that was there then? A younger one is another with the same id."""
    tag = process_tag(pid) if pid else None
    if tag is None:
        return False
    started = _boot_time() + int(tag.split(":")[1]) / os.sysconf("SC_CLK_TCK")
    return started <= then + _CLOCK_SLACK


def _boot_time() -> float:
    lines = Path("/proc/stat").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("btime ")))
