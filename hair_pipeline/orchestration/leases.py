"""Leases: whether the process of a run still lives, for all who share the instance, wherever it runs.

A process id says nothing in another container or on another machine. So whoever executes a run holds the lock of a
file in the instance's folder, which the kernel takes back when the process is gone, and touches the file now and then.

Belongs here: taking a lease and looking at one. Does not belong here: what follows for the run (`instance.py`).
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import dagster as dg
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.execution.step_dependency_config import StepDependencyConfig

from hair_pipeline.files import is_locked
from hair_pipeline.orchestration.orphans import SECONDS_TO_END

log = logging.getLogger(__name__)

TOUCH_EVERY = 15.0
SECONDS_TO_EXPIRE = SECONDS_TO_END + 60.0
"""A lease that nobody holds expires so long after it was last touched: by then the run's steps have ended too, and a
disk that does not share locks between machines makes nobody take a living run for a dead one."""


class Leased(dg.Executor):
    """An executor that holds the lease of its run while it executes it."""

    def __init__(self, executor: dg.Executor) -> None:
        self._executor = executor

    @property
    def retries(self) -> RetryMode:
        return self._executor.retries

    @property
    def step_dependency_config(self) -> StepDependencyConfig:
        return self._executor.step_dependency_config

    def execute(self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan) -> Iterator:
        with lease(plan_context.instance, plan_context.run_id):
            yield from self._executor.execute(plan_context, execution_plan)


@contextmanager
def lease(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Held while this process executes a run. Where the disk takes no lock, the run does without."""
    path = lease_path(instance, run_id)
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = hidden.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        hidden.replace(path)  # locked already, when others first see it
    except OSError as error:
        log.warning("no lease for run %s: %s", run_id[:8], error)
        yield
        return
    ended = threading.Event()
    threading.Thread(target=_touch, args=(path, ended), name="lease", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        path.unlink(missing_ok=True)  # before the lock goes: no lease says nothing, a free one that the run is dead
        file.close()


def _touch(path: Path, ended: threading.Event) -> None:
    while not ended.wait(TOUCH_EVERY):
        with suppress(OSError):
            os.utime(path)


def lease_state(instance: dg.DagsterInstance, run_id: str) -> Literal["held", "free", "expired", "unknown"]:
    """Whether a run's process holds its lease; `unknown` where there is none to look at.

    `expired` is the lease of a process that is gone, together with its steps. `free` may become that.
    """
    path = lease_path(instance, run_id)
    try:
        with path.open() as file:
            if is_locked(file):
                return "held"
            found = os.fstat(file.fileno())
            if path.stat().st_ino != found.st_ino:  # given back in this moment, or taken anew
                return "unknown"
            return "expired" if _now(path.parent) - found.st_mtime > SECONDS_TO_EXPIRE else "free"
    except OSError:
        return "unknown"


def _now(folder: Path) -> float:
    """The time by the clock that stamps the folder's files, which may be another machine's."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        return os.fstat(probe.fileno()).st_mtime


def lease_holder(instance: dg.DagsterInstance, run_id: str) -> str:
    """The process that executes a run, in words."""
    try:
        return lease_path(instance, run_id).read_text()
    except OSError:
        return "a process on an unknown machine"


def lease_path(instance: dg.DagsterInstance, run_id: str) -> Path:
    """The file of a run's lease."""
    return Path(instance.root_directory) / "leases" / run_id
