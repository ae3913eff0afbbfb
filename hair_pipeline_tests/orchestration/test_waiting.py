"""A run that waits for a pool says so, rests meanwhile, and goes on when the run that holds the pool is killed."""

import subprocess
import sys
import threading
import time
from io import StringIO
from multiprocessing import forkserver

import dagster as dg
import pytest
from rich.console import Console

from hair_pipeline.orchestration import waiting
from hair_pipeline.orchestration.instance import PID_TAG, open_instance
from hair_pipeline.orchestration.launch import Step, launch
from hair_pipeline.orchestration.progress import StepProgress
from hair_pipeline.orchestration.whereabouts import process_tag
from hair_pipeline.settings import Settings


@dg.job
def nothing():
    pass


@pytest.fixture
def sleeper():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"]) as child:
        yield child
        child.kill()


@pytest.fixture
def new_fork_server():
    """Steps have the environment of the fork server, which an earlier test of this process may have started."""
    forkserver._forkserver._stop()
    yield
    forkserver._forkserver._stop()


def test_a_run_waits_for_a_killed_one_no_longer_than_until_it_is_seen(tmp_path, monkeypatch, sleeper, new_fork_server):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("HAIR_PIPELINE_TEST_JOURNAL", str(tmp_path / "journal"))
    monkeypatch.setattr(waiting, "LOOK_EVERY", 0.3)
    said: list[Step] = []
    idle: list[float] = []

    def on_step(step: Step) -> None:
        said.append(step)
        if step.kind == "wait":
            threading.Thread(target=measure_and_kill).start()

    def measure_and_kill() -> None:
        before = time.process_time()
        time.sleep(1.5)
        idle.append(time.process_time() - before)
        sleeper.kill()
        sleeper.wait()

    with open_instance(Settings(training_root=tmp_path)) as instance:
        tags = {PID_TAG: str(process_tag(sleeper.pid))}
        run = instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED, tags=tags)
        assert instance.event_log_storage.claim_concurrency_slot("gpu", run.run_id, "step").is_claimed
        module = "hair_pipeline_tests.orchestration.lanes"
        outcome = launch(instance, selection="on_gpu_0", force=True, module=module, on_step=on_step)
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE
    assert outcome.materialised == ["on_gpu_0"], outcome.failures
    (wait,) = [step for step in said if step.kind == "wait"]
    assert wait.assets == "on_gpu_0"
    assert run.run_id[:8] in wait.message
    assert "pool gpu" in wait.message
    assert idle[0] < 0.9


def test_steps_of_the_same_run_that_take_turns_are_no_news(tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with open_instance(Settings(training_root=tmp_path)) as instance:
        run, other = (instance.create_run_for_job(nothing) for _ in range(2))
        storage = instance.event_log_storage
        assert storage.claim_concurrency_slot("gpu", run.run_id, "first").is_claimed
        assert not storage.claim_concurrency_slot("gpu", run.run_id, "second").is_claimed
        assert not storage.claim_concurrency_slot("gpu", other.run_id, "third").is_claimed
        assert waiting.waits(instance, run.run_id) == {}
        assert list(waiting.waits(instance, other.run_id)) == ["third"]


def test_the_terminal_shows_what_a_step_waits_for(tmp_path):
    screen = StringIO()
    with StepProgress(Console(file=screen, width=200), tmp_path / "log") as progress:
        progress.on_step(Step("stage2", "wait", "for the pool gpu"))
    assert "stage2: for the pool gpu" in screen.getvalue()
