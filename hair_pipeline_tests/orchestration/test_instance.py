"""The instance: where it lies, what it starts with, and that a killed command does not hold the GPU for ever."""

import os
import re
import subprocess
import sys

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.events import EngineEventData
from dagster._core.executor.init import InitExecutorContext
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.tags import PARENT_RUN_ID_TAG

from hair_pipeline.errors import PipelineError
from hair_pipeline.orchestration import instance as own
from hair_pipeline.orchestration.executors import local_executor
from hair_pipeline.orchestration.instance import MACHINE_TAG, PID_TAG, dagster_home, free_dead_runs, open_instance
from hair_pipeline.orchestration.launch import Outcome
from hair_pipeline.orchestration.progress import summary_lines
from hair_pipeline.orchestration.whereabouts import process_tag, this_machine
from hair_pipeline.settings import PROJECT_ROOT, Settings


def test_storage_stays_inside_a_training_root_of_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    settings = Settings(training_root=tmp_path / "training")
    assert dagster_home(settings) == tmp_path / "training" / "dagster"
    with open_instance(settings) as instance:
        pools = instance.event_log_storage.get_concurrency_info("gpu")
        assert pools.slot_count == 1
        assert not instance.telemetry_enabled
    assert {path.name for path in tmp_path.iterdir()} == {"training"}


@pytest.mark.parametrize("kind", ["sensor", "schedule"])
def test_the_documented_command_switches_on_what_the_daemon_serves(kind, tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    guide = (PROJECT_ROOT / "docs" / "data-engineer.md").read_text()
    command, *_ = re.findall(rf"^uv run (dagster {kind} start \S+ [^#\n]*)", guide, re.MULTILINE)
    settings = Settings(training_root=tmp_path)
    with open_instance(settings) as instance:
        done = subprocess.run(
            [sys.executable, "-m", *command.split()],
            cwd=PROJECT_ROOT,
            env={**os.environ, "DAGSTER_HOME": str(dagster_home(settings))},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (state,) = instance.all_instigator_state()
    served = yaml.safe_load((PROJECT_ROOT / "workspace.yaml").read_text())["load_from"][0]["python_module"]
    origin = state.origin.repository_origin.code_location_origin
    assert origin.location_name == served["location_name"]
    assert state.is_running


def test_every_dagster_command_of_the_guides_knows_the_instance():
    for name in ("data-engineer.md", "scale-out.md", "operator.md"):
        for block in re.findall(r"```bash\n(.*?)```", (PROJECT_ROOT / "docs" / name).read_text(), re.DOTALL):
            before, found, _ = re.split(r"(uv run dagster (?:sensor|schedule|instance)|\Z)", block, maxsplit=1)
            assert not found or "export DAGSTER_HOME=" in before, f"{name}: {block}"


def test_a_dagster_home_without_configuration_gets_ours(tmp_path, monkeypatch):
    home = tmp_path / "new" / "home"
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    settings = Settings(training_root=tmp_path / "training")
    assert dagster_home(settings) == home
    with open_instance(settings) as instance:
        assert not instance.telemetry_enabled
        assert instance.run_monitoring_enabled
        assert instance.event_log_storage.get_concurrency_info("gpu").slot_count == 1
        assert instance.root_directory.startswith(str(home))
    assert not (tmp_path / "training").exists()


def test_a_dagster_home_in_the_home_folder_is_found_and_a_relative_one_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", "~/dagster")
    assert dagster_home(Settings()) == tmp_path / "dagster"
    monkeypatch.setenv("DAGSTER_HOME", "dagster")
    with (
        pytest.raises(PipelineError, match=f"(?s)DAGSTER_HOME=dagster is not.*{tmp_path}/dagster"),
        open_instance(Settings()),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_is_written_anew_until_somebody_edits_it(tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    settings = Settings(training_root=tmp_path / "before")
    path = dagster_home(settings) / "dagster.yaml"
    with open_instance(settings):
        assert "left alone" in path.read_text().splitlines()[1]
    moved = Settings(training_root=(tmp_path / "before").rename(tmp_path / "after"))
    path = dagster_home(moved) / "dagster.yaml"
    with open_instance(moved) as instance:
        assert str(tmp_path / "after") in instance.root_directory
    edited = path.read_text().replace("max_concurrent_runs: 4", "max_concurrent_runs: 7")
    path.write_text(edited)
    with open_instance(moved):
        assert path.read_text() == edited
    again = Settings(training_root=(tmp_path / "after").rename(tmp_path / "third"))
    with open_instance(again) as instance:
        assert str(tmp_path / "third") in instance.root_directory
    assert "max_concurrent_runs: 7" in (dagster_home(again) / "dagster.yaml").read_text()
    assert not (tmp_path / "after").exists()


def test_a_configuration_of_an_earlier_version_follows_its_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    settings = Settings(training_root=tmp_path)
    path = dagster_home(settings) / "dagster.yaml"
    with open_instance(settings):
        written = path.read_text()
    path.write_text("".join(line for line in written.splitlines(True) if not line.startswith("#")).replace("/", "/x"))
    with open_instance(settings):
        assert path.read_text() == written


def test_an_instance_without_configuration_keeps_its_history(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path))) as instance:
        instance.add_dynamic_partitions("shards", ["shard_0000"])
    with open_instance(Settings(training_root=tmp_path / "training")) as instance:
        assert instance.get_dynamic_partitions("shards") == ["shard_0000"]
    assert not (tmp_path / "dagster.yaml").exists()


@pytest.mark.parametrize(
    ("configuration", "by_hand", "limits"),
    [("", None, {"gpu": 1}), ("", 3, {"gpu": 3}), ("concurrency: {pools: {default_limit: 2}}", None, {})],
)
def test_a_run_limits_gpu_steps_in_an_instance_where_nobody_has(tmp_path, configuration, by_hand, limits):
    (tmp_path / "dagster.yaml").write_text(configuration)
    executor, job = local_executor(), InMemoryJob(dg.GraphDefinition("nothing").to_job())
    options = {"max_concurrent": 1, "retries": {"enabled": {}}}
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path))) as instance:
        storage = instance.event_log_storage
        if by_hand is not None:
            storage.set_concurrency_slots("gpu", by_hand)
        executor.executor_creation_fn(InitExecutorContext(job, executor, options, instance))
        assert {pool.name: pool.limit for pool in storage.get_pool_limits()} == limits


def test_a_run_that_is_tried_again_is_not_judged_by_the_process_of_its_first_try(tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)

    @dg.job
    def nothing():
        pass

    gone = f"{this_machine()}/999999999:1"
    with open_instance(Settings(training_root=tmp_path)) as instance:
        for tags in ({PID_TAG: gone}, {PID_TAG: gone, PARENT_RUN_ID_TAG: "first"}):
            run = instance.create_run_for_job(nothing, tags=tags, status=dg.DagsterRunStatus.STARTED)
            assert (free_dead_runs(instance) == [run.run_id]) == (PARENT_RUN_ID_TAG not in tags)


def test_the_closing_line_opens_the_instance_that_was_used(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "my home"))
    lines = list(summary_lines(Settings(training_root=tmp_path), Outcome()))
    assert f"Dagster UI:  DAGSTER_HOME='{tmp_path}/my home' uv run dagster dev" in lines


def test_the_default_training_root_keeps_dagster_beside_it(monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    assert dagster_home(Settings(training_root=PROJECT_ROOT / "data" / "training")) == PROJECT_ROOT / "data" / "dagster"


def test_a_killed_command_frees_its_run_and_its_place_in_the_pool(tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    tag = process_tag(child.pid)

    @dg.job
    def nothing():
        pass

    with open_instance(Settings(training_root=tmp_path)) as instance:
        running = [
            instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED, tags={PID_TAG: value})
            for value in (str(tag), str(process_tag()))
        ]
        claim = instance.event_log_storage.claim_concurrency_slot("gpu", running[0].run_id, "step")
        assert claim.is_claimed
        assert free_dead_runs(instance) == []
        child.kill()
        child.wait()
        assert free_dead_runs(instance) == [running[0].run_id]
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0
        statuses = [instance.get_run_by_id(run.run_id).status for run in running]
    assert statuses == [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.STARTED]


@pytest.mark.parametrize("seen_by", ["us", "somebody else"])
def test_a_killed_run_keeps_its_place_in_the_pool_while_one_of_its_steps_lives(tmp_path, monkeypatch, seen_by):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    command, step = (subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2))

    @dg.job
    def nothing():
        pass

    with open_instance(Settings(training_root=tmp_path)) as instance:
        tags = {PID_TAG: str(process_tag(command.pid))}
        run = instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED, tags=tags)
        event = dg.DagsterEvent(
            dg.DagsterEventType.STEP_WORKER_STARTED.value,
            "nothing",
            message='Executing step "x" in subprocess.',
            event_specific_data=EngineEventData(),
            pid=step.pid,
        )
        instance.report_dagster_event(event, run.run_id)
        claim = instance.event_log_storage.claim_concurrency_slot("gpu", run.run_id, "x")
        assert claim.is_claimed
        command.kill()
        command.wait()
        assert free_dead_runs(instance) == []
        if seen_by == "somebody else":
            instance.report_run_failed(run)
            assert free_dead_runs(instance) == []
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 1
        step.kill()
        step.wait()
        assert free_dead_runs(instance) == ([run.run_id] if seen_by == "us" else [])
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0


def test_each_machine_judges_its_own_runs_also_those_from_before_it_was_restarted(tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    machine, boot, namespace = this_machine().split(".")
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    gone = f"{child.pid}:1"

    @dg.job
    def nothing():
        pass

    with open_instance(Settings(training_root=tmp_path)) as instance:

        def run(**tags: str) -> str:
            started = instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED, tags=tags)
            instance.report_engine_event(f"Started process for run (pid: {child.pid}).", started)
            return started.run_id

        for other in ("other." + boot, f"{machine}.{boot}"):  # another machine, another container of this one
            run(**{PID_TAG: f"{other}.0/{gone}"})
            run(**{MACHINE_TAG: f"{other}.0"})
        here = [run(**{PID_TAG: f"{this_machine()}/{gone}"}), run(**{MACHINE_TAG: this_machine()})]
        restarted = f"{machine}.earlier.{namespace}"
        here += [run(**{PID_TAG: f"{restarted}/{gone}"}), run(**{MACHINE_TAG: restarted})]
        assert sorted(free_dead_runs(instance)) == sorted(here)


def test_a_run_that_has_just_ended_well_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)

    @dg.job
    def nothing():
        pass

    with open_instance(Settings(training_root=tmp_path)) as instance:
        run = instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED, tags={PID_TAG: "any"})

        def ends_meanwhile(_: str) -> bool:
            kind = dg.DagsterEventType.PIPELINE_SUCCESS.value
            instance.report_dagster_event(dg.DagsterEvent(kind, run.job_name), run.run_id)
            return True

        monkeypatch.setattr(own, "is_gone", ends_meanwhile)
        assert free_dead_runs(instance) == []
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.SUCCESS


def test_a_run_of_the_daemon_whose_process_is_gone_is_freed(tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    @dg.job
    def nothing():
        pass

    with open_instance(Settings(training_root=tmp_path)) as instance:
        run = instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED)
        silent = instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED)
        instance.report_engine_event(f"Started process for run (pid: {child.pid}).", run)
        assert free_dead_runs(instance) == []
        child.kill()
        child.wait()
        assert free_dead_runs(instance) == [run.run_id]
        assert instance.get_run_by_id(silent.run_id).status == dg.DagsterRunStatus.STARTED
