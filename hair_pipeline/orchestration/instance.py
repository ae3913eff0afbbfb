"""The Dagster instance that `hair-pipeline run` shares with `dagster dev`.

Belongs here: finding and opening the instance, pool sizes, and freeing what killed runs hold.
Does not belong here: the instance's configuration, which is `dagster.yaml`.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dagster as dg
import yaml
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import DefaultRunLauncher
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.tags import PARENT_RUN_ID_TAG

from hair_pipeline.cores import cpu_count
from hair_pipeline.errors import PipelineError
from hair_pipeline.files import hash_bytes, one_at_a_time, write_bytes
from hair_pipeline.orchestration.compute_tags import CPU_POOL, GPU_POOL
from hair_pipeline.orchestration.leases import lease_path, lease_state
from hair_pipeline.orchestration.orphans import SECONDS_TO_END
from hair_pipeline.orchestration.whereabouts import is_gone, runs_since, standing
from hair_pipeline.settings import PROJECT_ROOT, Settings

log = logging.getLogger(__name__)

PID_TAG = "hair_pipeline/pid"
"""Run tag: the process of the command that executes the run (`whereabouts.process_tag`)."""
MACHINE_TAG = "hair_pipeline/machine"
"""Run tag: where the daemon's code location starts the run's process (`whereabouts.this_machine`)."""


def dagster_home(settings: Settings) -> Path:
    """The folder of the instance: $DAGSTER_HOME if it is set, else data/dagster for the default training root, and a
    folder in the training root for any other.

    Raises:
        PipelineError: $DAGSTER_HOME is not absolute.
    """
    if configured := os.environ.get("DAGSTER_HOME"):
        return _absolute(configured)
    default_root = PROJECT_ROOT / "data" / "training"
    return (
        PROJECT_ROOT / "data" / "dagster"
        if settings.training_root == default_root
        else (settings.training_root / "dagster")
    )


def _absolute(configured: str) -> Path:
    home = Path(configured).expanduser()
    if not home.is_absolute():
        raise PipelineError(
            f"DAGSTER_HOME={configured} is not an absolute path",
            remedy=f"export DAGSTER_HOME={shlex.quote(str(home.absolute()))}, or unset it",
        )
    return home


@contextmanager
def open_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """Open the instance at `dagster_home(settings)`, configured by its dagster.yaml, which is written if need be.

    Nothing is written outside the training root when that is not the default one.

    Raises:
        PipelineError: the folder cannot be written to, or is not an absolute path.
    """
    home = dagster_home(settings)
    with ExitStack() as stack:
        with one_at_a_time(home / ".opening.lock"):  # two at once would both make the tables, and one would fail
            _configure(home)
            instance = stack.enter_context(dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home))))
            _prepare(instance)
        yield instance


def _configure(home: Path) -> None:
    """Write the instance's dagster.yaml, unless there is one by somebody else's hand, or an instance without one."""
    path = home / "dagster.yaml"
    if path.exists():
        text = path.read_text(encoding="utf-8")
        if not _is_ours(text, home):
            _follow_home(path, text, home)
            return
    elif any((home / name).exists() for name in _STORAGE_WITHOUT_CONFIGURATION):
        log.warning("%s is used without a dagster.yaml, and left so: its history would not be found otherwise", home)
        return
    values = yaml.safe_dump(_configuration(home), sort_keys=False)
    write_bytes(path, (_heading(values, str(home)) + values).encode())


_STORAGE_WITHOUT_CONFIGURATION = ("history", "schedules")
"""Where Dagster keeps an instance's events when nobody says."""


def _is_ours(text: str, home: Path) -> bool:
    """Is this what an earlier command wrote, as it wrote it?"""
    values = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    if (written_for := _written_for(text)) is not None:
        return text == _heading(values, written_for) + values
    try:
        return _without_places(yaml.safe_load(text)) == _without_places(_configuration(home))
    except (yaml.YAMLError, KeyError, TypeError):
        return False


def _follow_home(path: Path, text: str, home: Path) -> None:
    """Let an edited file that was moved with its folder name the new place, or it would open the old one's storage."""
    before = _written_for(text)
    if before not in (None, str(home)):
        write_bytes(path, text.replace(str(before), str(home)).encode())


def _without_places(values: dict) -> dict:
    values["storage"]["sqlite"]["base_dir"] = None
    values["local_artifact_storage"]["config"]["base_dir"] = None
    values["compute_logs"]["config"]["base_dir"] = None
    return values


def _written_for(text: str) -> str | None:
    found = _HOME.search(text)
    return None if found is None else found[1]


def _heading(values: str, home: str) -> str:
    return _HEADING.format(hash_bytes(values)[:16], home)


_HEADING = """\
# {}: written by hair-pipeline from the checkout's dagster.yaml, and anew by every command while nobody changes it.
# Edit it as you like: it is then left alone. Delete it to have it written anew.
# For {}
"""
_HOME = re.compile(r"^# [0-9a-f]{16}: written by hair-pipeline .*\n#.*\n# For (.+)\n")


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
        instance.event_log_storage.set_concurrency_slots(CPU_POOL, cpu_count())
    if GPU_POOL not in instance.event_log_storage.get_concurrency_keys():
        instance.event_log_storage.set_concurrency_slots(GPU_POOL, 1)


def limit_gpu_steps(instance: dg.DagsterInstance) -> None:
    """Give the pool of GPU steps one place where neither a person nor dagster.yaml has said how many.

    Dagster limits no pool by default, so an instance of somebody's own would train two networks on one card at once.
    """
    storage = instance.event_log_storage
    said = instance.global_op_concurrency_default_limit is not None or GPU_POOL in storage.get_concurrency_keys()
    if storage.supports_global_concurrency_limits and not said:
        log.warning("the pool %s has no limit in this instance, and gets one place", GPU_POOL)
        storage.set_concurrency_slots(GPU_POOL, 1)


def free_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs whose process was killed as failed, and free their places in the pools; returns their ids.

    Without this a `kill -9` of `hair-pipeline run`, or of the machine while the daemon runs jobs, would hold the GPU
    for ever: Dagster watches the processes of cluster launchers, not those of its default one. Runs whose steps are
    still saving keep their places; a later call frees them. Runs of other containers and machines are judged by their
    lease (`leases`), if it can be seen here.
    """
    gone = [run for run in _dead_runs(instance) if not _has_living_steps(instance, run)]
    dead = [run for run in gone if not _has_ended(instance, run)]
    for run in dead:
        instance.report_run_failed(run, "The process that executed this run was killed.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        lease_path(instance, run.run_id).unlink(missing_ok=True)
    _free_places_of_ended_runs(instance)
    return [run.run_id for run in dead]


def _free_places_of_ended_runs(instance: dg.DagsterInstance) -> None:
    """Free what runs that ended on this machine still hold in the pools, as soon as their last step has ended.

    Somebody else may have seen that they were killed: Dagster's code server, or run monitoring, which itself frees
    their places after some minutes and does not look whether a training is still being saved.
    """
    storage = instance.event_log_storage
    pools = [storage.get_concurrency_info(key) for key in storage.get_concurrency_keys()]
    holders = {run_id for pool in pools for run_id in pool.active_run_ids}
    for run in filter(None, map(instance.get_run_by_id, holders)):
        ended_here = run.is_finished and standing(_machine_of(run)) == "here"
        if ended_here and not _has_living_steps(instance, run):
            storage.free_concurrency_slots_for_run(run.run_id)


def _dead_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Runs that say that they run, but whose process is gone."""
    alive = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]
    runs = instance.get_runs(dg.RunsFilter(statuses=alive))
    return [run for run in runs if _is_dead(instance, run)]


def _is_dead(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Is the process gone that executes a run? Its lease says so where nothing can be said of its id."""
    lease = lease_state(instance, run.run_id)
    if lease == "held":
        return False
    if PARENT_RUN_ID_TAG in run.tags:  # tried again: its tags name the process and the machine of the first try
        return lease == "expired"
    gone = is_gone(run.tags[PID_TAG]) if PID_TAG in run.tags else _launched_process_is_gone(instance, run)
    return lease == "expired" if gone is None else gone


def _has_ended(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Had the run ended when its process went? It says so last thing, so it is asked after the process is gone."""
    now = instance.get_run_by_id(run.run_id)
    return now is None or now.is_finished


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
    """Is a process of one of the run's steps still there? Where that cannot be seen, they end before the lease does."""
    if standing(_machine_of(run)) != "here" and lease_state(instance, run.run_id) == "expired":
        return False
    return any(
        runs_since(entry.dagster_event.pid or 0, entry.timestamp)
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_WORKER_STARTED)
        if entry.dagster_event and (entry.dagster_event.message or "").startswith(_STEP_IN_A_PROCESS)
    )


def _machine_of(run: dg.DagsterRun) -> str:
    """Where the run's process is; empty where it does not say."""
    return run.tags.get(PID_TAG, "").rpartition("/")[0] or run.tags.get(MACHINE_TAG, "")


_STARTED_PROCESS = re.compile(r"Started process for run \(pid: (\d+)\)")


def _launched_process_is_gone(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool | None:
    """Is the process of a run that the default launcher started on this machine gone? None where that is unknown.

    A run that was launched by hand does not say where it is; with SQLite it is most likely here.
    """
    if not isinstance(instance.run_launcher, DefaultRunLauncher):
        return False
    if MACHINE_TAG in run.tags:
        where = standing(run.tags[MACHINE_TAG])
        if where != "here":
            return True if where == "restarted" else None
    elif not isinstance(instance.event_log_storage, SqliteEventLogStorage):
        return None
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        found = _STARTED_PROCESS.search(entry.message or "")
        if found is None and entry.dagster_event is not None:
            found = _STARTED_PROCESS.search(entry.dagster_event.message or "")
        if found is not None:
            return not runs_since(int(found[1]), entry.timestamp) or None
    return None
