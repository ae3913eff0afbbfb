"""Training as a child of a step: cancelled, killed, stopped from outside, and on several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.errors import DagsterExecutionInterruptedError

from hair_pipeline.orchestration import resources, trainer
from hair_pipeline.orchestration.trainer import train_command
from hair_pipeline.settings import PROJECT_ROOT, Settings
from hair_pipeline.training import checkpoint
from hair_pipeline_tests.orchestration import stoppable
from hair_pipeline_tests.orchestration.line_trainer import HURRY, STEPS
from hair_pipeline_tests.orchestration.test_local_lane import instance_folder


class Training:
    """Launches of the lineage `stoppable`, and what its training left."""

    def __init__(self, root: Path) -> None:
        self.home, self.folder = instance_folder(root), root / "run"
        self.folder.mkdir()
        self.environment = {**os.environ, "DAGSTER_HOME": str(self.home), "HAIR_PIPELINE_TEST_FOLDER": str(self.folder)}

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "hair_pipeline_tests.orchestration.stoppable"],
            cwd=PROJECT_ROOT,
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def steps(self) -> int:
        path = self.folder / "losses.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def wait_for_step(self, step: int, launch: subprocess.Popen) -> int:
        """The training's process, as soon as it has made so many steps."""
        deadline = time.monotonic() + 120
        while self.steps() < step:
            assert launch.poll() is None, launch.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return int((self.folder / "pid").read_text())

    def hurry(self) -> None:
        """Let the rest of the training be quick: it is stopped no more."""
        (self.folder / HURRY).touch()

    def saved(self) -> int:
        found = checkpoint.load_newest(self.folder / "checkpoints")
        assert found is not None
        return found.step


def gone(pid: int, patience: float = 60.0) -> bool:
    """Whether a process ends in time (a zombie has ended)."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
def test_a_training_is_saved_and_frees_the_gpu_however_it_is_stopped(tmp_path):
    training = Training(tmp_path)

    launch = training.start()
    child = training.wait_for_step(3, launch)
    launch.send_signal(signal.SIGINT)  # as Ctrl-C and as a cancellation in the UI reach the process of a run
    launch.communicate(timeout=120)
    assert launch.returncode != 0
    assert gone(child, 1)
    first = training.saved()
    assert 3 <= first == training.steps() < STEPS
    with dg.DagsterInstance.from_config(str(training.home)) as instance:
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0
        (cancelled,) = instance.get_runs(limit=1)
        assert cancelled.is_finished

    launch = training.start()
    child = training.wait_for_step(first + 3, launch)
    os.kill(parent(child), signal.SIGKILL)  # the step's process, with no time to tell the training
    assert gone(child)
    launch.communicate(timeout=120)
    second = training.saved()
    assert first + 3 <= second == training.steps() < STEPS

    launch = training.start()
    child = training.wait_for_step(second + 3, launch)
    os.kill(child, signal.SIGTERM)  # the training itself, as when its machine is taken away
    assert gone(child)
    training.hurry()
    _, errors = launch.communicate(timeout=200)
    assert launch.returncode == 0, errors
    lines = [json.loads(line) for line in (training.folder / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(len(lines)))
    assert training.saved() == len(lines) == STEPS
    with dg.DagsterInstance.from_config(str(training.home)) as instance:
        (last,) = instance.get_runs(limit=1)
        kinds = [entry.dagster_event.event_type for entry in instance.all_logs(last.run_id) if entry.dagster_event]
        assert kinds.count(dg.DagsterEventType.STEP_UP_FOR_RETRY) == 1
        assert kinds.count(dg.DagsterEventType.STEP_RESTARTED) == 1
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0


@pytest.mark.slow
def test_the_next_command_gets_the_gpu_when_the_training_of_a_killed_one_has_saved(tmp_path):
    training = Training(tmp_path)
    launch = training.start()
    orphan = training.wait_for_step(3, launch)
    launch.kill()  # the process of the run, not those of its steps
    launch.communicate()
    after = training.start()
    assert gone(orphan)
    saved = training.saved()
    assert saved < STEPS
    assert training.wait_for_step(saved + 1, after) != orphan
    training.hurry()
    _, errors = after.communicate(timeout=200)
    assert after.returncode == 0, errors
    lines = [json.loads(line)["step"] for line in (training.folder / "losses.jsonl").read_text().splitlines()]
    assert lines == list(range(STEPS))
    with dg.DagsterInstance.from_config(str(training.home)) as instance:
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0
        assert not instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))


def materialise(folder: Path, monkeypatch, **environment: str) -> dg.ExecuteInProcessResult:
    """The training as a step of this process."""
    folder.mkdir()
    values = {"HAIR_PIPELINE_TEST_FOLDER": str(folder), "HAIR_PIPELINE_TEST_SECONDS": "0", **environment}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(trainer, "COMMAND", stoppable.COMMAND)
    return dg.materialize([stoppable.stage2], raise_on_error=False)


@pytest.mark.slow
def test_two_processes_under_torchrun_train_like_one_and_one_of_them_reports(tmp_path, monkeypatch):
    assert materialise(tmp_path / "one", monkeypatch).success
    done = materialise(tmp_path / "two", monkeypatch, HAIR_PIPELINE_TRAINING_PROCESSES="2")
    assert done.success
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "losses.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == len(two) == STEPS
    for alone, shared in zip(one, two, strict=True):
        assert shared == pytest.approx(alone, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_a_dying_process_fails_the_step_with_its_message(tmp_path, monkeypatch):
    done = materialise(
        tmp_path / "two", monkeypatch, HAIR_PIPELINE_TRAINING_PROCESSES="2", HAIR_PIPELINE_TEST_DYING_RANK="1"
    )
    (failure,) = done.get_step_failure_events()
    assert failure.step_failure_data.user_failure_data.description.startswith("the disk of process 1 is on fire")


class Ended:
    """A step's child during which the step is told to end."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def wait(self) -> int:
        raise DagsterExecutionInterruptedError


@pytest.mark.parametrize(
    ("executor", "status", "retries"), [("k8s", None, 1), ("k8s", "CANCELING", 0), ("local", None, 0)]
)
def test_a_step_whose_machine_is_taken_away_is_tried_again(executor, status, retries, tmp_path, monkeypatch):
    monkeypatch.setenv("HAIR_PIPELINE_EXECUTOR", executor)
    monkeypatch.setattr(trainer.subprocess, "Popen", Ended)
    monkeypatch.setattr(resources, "RETRIES", dg.RetryPolicy(max_retries=1, delay=0))
    instance = dg.DagsterInstance.ephemeral()

    def stop(_: object) -> None:
        (run,) = instance.get_runs()
        if status is not None:
            instance.report_run_canceling(run)

    monkeypatch.setattr(trainer, "stop", stop)
    with suppress(DagsterExecutionInterruptedError):
        dg.materialize([stoppable.stage2], instance=instance, raise_on_error=False)
    (run,) = instance.get_runs()
    again = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_UP_FOR_RETRY)
    assert len(again) == retries


def test_torchrun_is_used_where_there_are_several_processes_or_machines():
    assert train_command("stage2", Settings())[1:] == [*trainer.COMMAND, "stage2"]
    several = train_command("stage2", Settings(training_processes=4), ["--resume"])
    assert several[1:] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"),
        *(*trainer.COMMAND, "stage2", "--resume"),
    ]
    machines = "--nnodes 2 --rdzv-backend c10d --rdzv-endpoint gpu1:29400"
    assert " ".join(train_command("stage1", Settings(torchrun_options=machines))[3:9]) == machines
    assert "torch.distributed.run" not in train_command("patch-encoder", Settings(training_processes=4))
