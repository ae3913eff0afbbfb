"""Leases: a run is dead when nobody holds its lease, whatever its process id would say in this container."""

import os
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import EngineEventData

from hair_pipeline.orchestration.instance import MACHINE_TAG, PID_TAG, free_dead_runs, open_instance
from hair_pipeline.orchestration.leases import SECONDS_TO_EXPIRE, lease, lease_holder, lease_path, lease_state
from hair_pipeline.orchestration.orphans import SECONDS_TO_END
from hair_pipeline.orchestration.whereabouts import this_machine
from hair_pipeline.settings import Settings

HOLDER = """
import sys, time
import dagster as dg
from hair_pipeline.orchestration.leases import lease
with dg.DagsterInstance.from_config(sys.argv[1]) as instance, lease(instance, sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


@dg.job
def nothing():
    pass


@pytest.fixture
def instance(tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with open_instance(Settings(training_root=tmp_path)) as opened:
        yield opened


def started(instance: dg.DagsterInstance, **tags: str) -> dg.DagsterRun:
    return instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED, tags=tags)


def elsewhere(kind: str) -> dict[str, str]:
    """The tags of a run of another container of this machine."""
    container = ".".join([*this_machine().split(".")[:2], "0"])
    return {PID_TAG: f"{container}/{os.getpid()}:1"} if kind == "command" else {MACHINE_TAG: container}


def grow_old(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    then = time.time() - SECONDS_TO_EXPIRE - 1
    os.utime(lease_path(instance, run.run_id), (then, then))


def leave_a_lease(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """As a killed process does."""
    path = lease_path(instance, run.run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("process 7 on another")


@pytest.mark.parametrize("kind", ["command", "daemon"])
def test_a_run_of_another_container_is_dead_when_its_lease_has_expired_and_not_before(kind, instance):
    run = started(instance, **elsewhere(kind))
    assert instance.event_log_storage.claim_concurrency_slot("gpu", run.run_id, "step").is_claimed
    assert lease_state(instance, run.run_id) == "unknown"
    assert free_dead_runs(instance) == []
    leave_a_lease(instance, run)
    assert lease_state(instance, run.run_id) == "free"
    assert free_dead_runs(instance) == []
    grow_old(instance, run)
    assert free_dead_runs(instance) == [run.run_id]
    assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0
    assert not lease_path(instance, run.run_id).exists()


def test_process_ids_of_another_container_keep_no_dead_run_alive(instance):
    run = started(instance, **elsewhere("command"))
    event = dg.DagsterEvent(
        dg.DagsterEventType.STEP_WORKER_STARTED.value,
        "nothing",
        message='Executing step "x" in subprocess.',
        event_specific_data=EngineEventData(),
        pid=os.getpid(),  # there it was a step; here another process has this id
    )
    instance.report_dagster_event(event, run.run_id)
    leave_a_lease(instance, run)
    grow_old(instance, run)
    assert free_dead_runs(instance) == [run.run_id]
    assert SECONDS_TO_EXPIRE > SECONDS_TO_END


def test_a_run_whose_lease_is_held_is_never_dead(instance):
    machine, _, namespace = this_machine().split(".")
    runs = [started(instance, **tags) for tags in (elsewhere("command"), {PID_TAG: f"{machine}.0.{namespace}/1:1"}, {})]
    instance.report_engine_event(f"Started process for run (pid: {2**22 + 1}).", runs[2])
    for run in runs:
        with lease(instance, run.run_id):
            grow_old(instance, run)
            assert lease_state(instance, run.run_id) == "held"
            assert str(os.getpid()) in lease_holder(instance, run.run_id)
            assert run.run_id not in free_dead_runs(instance)
        assert lease_state(instance, run.run_id) == "unknown"


def test_a_killed_process_leaves_its_lease_free(instance):
    run = started(instance)
    arguments = [sys.executable, "-c", HOLDER, str(Path(instance.root_directory).parent), run.run_id]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert lease_state(instance, run.run_id) == "held"
        child.kill()
    assert lease_state(instance, run.run_id) == "free"


def test_a_disk_that_takes_no_lease_stops_no_run(instance, tmp_path):
    lease_path(instance, "run").parent.parent.mkdir(parents=True, exist_ok=True)
    lease_path(instance, "run").parent.write_text("in the way")
    with lease(instance, "run"):
        assert lease_state(instance, "run") == "unknown"
