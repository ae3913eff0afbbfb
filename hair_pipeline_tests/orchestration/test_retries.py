"""Which faults a step tries again, and what people see of a failure."""

import errno
import http.server
import io
import json
import threading
import traceback
import urllib.error
from contextlib import suppress

import dagster as dg
import pytest
import requests
import torch
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.remote_origin import RegisteredCodeLocationOrigin

from hair_pipeline.errors import PipelineError, TransientError, is_transient
from hair_pipeline.orchestration import alerts, resources
from hair_pipeline.orchestration.alerts import post, run_failed
from hair_pipeline.orchestration.resources import explained
from hair_pipeline.training import entry
from hair_pipeline.training.loop import Interrupted


@dg.asset
def interrupted() -> None:
    """A step that is told to end by a signal."""
    with explained():
        raise DagsterExecutionInterruptedError


@pytest.mark.parametrize(
    ("executor", "canceling", "retries"), [("k8s", False, 1), ("ray", False, 1), ("k8s", True, 0), ("local", False, 0)]
)
def test_a_step_whose_machine_is_taken_away_is_tried_again(executor, canceling, retries, monkeypatch):
    monkeypatch.setenv("HAIR_PIPELINE_EXECUTOR", executor)
    monkeypatch.setattr(resources, "RETRIES", dg.RetryPolicy(max_retries=1, delay=0))
    instance = dg.DagsterInstance.ephemeral()
    if canceling:
        monkeypatch.setattr(dg.DagsterInstance, "get_run_by_id", lambda *_: dg.DagsterRun("x", status=CANCELING))
    with suppress(DagsterExecutionInterruptedError):
        dg.materialize([interrupted], instance=instance, raise_on_error=False)
    (run,) = instance.get_runs()
    assert len(instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_UP_FOR_RETRY)) == retries


CANCELING = dg.DagsterRunStatus.CANCELING


def http_error(code: int) -> Exception:
    return urllib.error.HTTPError("http://x", code, "", {}, io.BytesIO())  # type: ignore[arg-type]


def answered(code: int) -> Exception:
    response = requests.Response()
    response.status_code = code
    return requests.HTTPError(response=response)


@pytest.mark.parametrize(
    "error",
    [
        TransientError("busy"),
        Interrupted("SIGTERM"),
        OSError(errno.EIO, "I/O error"),
        OSError(errno.ESTALE, "stale file handle"),
        ConnectionResetError(),
        TimeoutError(),
        requests.ConnectionError("no route"),
        answered(503),
        http_error(429),
    ],
    ids=repr,
)
def test_what_passes_by_itself_is_tried_again(error):
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        PipelineError("broken label"),
        FileNotFoundError(errno.ENOENT, "no such file"),
        PermissionError(errno.EACCES, "not allowed"),
        OSError(errno.ENOSPC, "disk full"),
        http_error(404),
        answered(401),
        ValueError("a fault of the code"),
        KeyError("x"),
        RuntimeError("CUDA error"),
    ],
    ids=repr,
)
def test_what_only_a_person_can_mend_is_not(error):
    assert not is_transient(error)


def test_the_hub_being_away_is_tried_again():
    client = pytest.importorskip("httpx2", reason="the hub's client is another one")
    assert is_transient(client.ConnectError("no route"))


def attempts(error: Exception, failures: int, monkeypatch) -> tuple[int, dg.ExecuteInProcessResult]:
    """How often a step runs that raises `error` so many times."""
    monkeypatch.setattr(resources, "RETRIES", dg.RetryPolicy(max_retries=2, delay=0))
    tries = []

    @dg.asset
    def shaky() -> None:
        tries.append(1)
        with explained():
            if len(tries) <= failures:
                raise error

    return tries, dg.materialize([shaky], raise_on_error=False)


def test_a_step_goes_on_after_a_transient_fault(monkeypatch):
    tries, done = attempts(ConnectionResetError("the share is away"), 2, monkeypatch)
    assert (len(tries), done.success) == (3, True)


def test_a_transient_fault_that_stays_fails_the_step_with_its_cause(monkeypatch):
    tries, done = attempts(ConnectionResetError("the share is away"), 9, monkeypatch)
    assert (len(tries), done.success) == (3, False)
    (failure,) = done.get_step_failure_events()
    assert "the share is away" in failure.step_failure_data.error.cause.message


@pytest.mark.parametrize("error", [PipelineError("broken label", remedy="mend it"), ValueError("a bug")])
def test_any_other_fault_fails_at_once(error, monkeypatch):
    tries, done = attempts(error, 9, monkeypatch)
    assert (len(tries), done.success) == (1, False)


def test_the_delay_grows():
    delays = [resources.RETRIES.calculate_delay(attempt) for attempt in (1, 2, 3)]
    assert delays == [30, 90, 210]


class Plan:
    name, run_dir = "stage2", "/runs/stage2/x"


@pytest.mark.parametrize(("others", "kind"), [(20, TransientError), (1, PipelineError)])
def test_a_gpu_that_others_fill_may_be_free_later_and_one_that_is_too_small_stays_so(others, kind, monkeypatch):
    gib = 1 << 30
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: ((4 - others) * gib + 20 * gib, 24 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    error = entry._out_of_memory(Plan, RuntimeError("tried to allocate 8 GiB\nmore"))  # type: ignore[arg-type]
    assert type(error) is kind
    assert ("other programs hold" in error.message) == (kind is TransientError)


class Webhook(http.server.BaseHTTPRequestHandler):
    got: list = []
    answers: list[int] = []
    """Of the next requests; the others get 200."""

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.answers.pop(0) if self.answers else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def webhook():
    Webhook.got.clear()
    server = http.server.HTTPServer(("127.0.0.1", 0), Webhook)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook"
    server.shutdown()
    server.server_close()


def failed_run_context(instance: dg.DagsterInstance) -> dg.RunFailureSensorContext:
    @dg.op
    def broken() -> None:
        raise dg.Failure("label 17 is broken", allow_retries=False)

    @dg.job
    def nightly() -> None:
        broken()

    done = nightly.execute_in_process(instance=instance, raise_on_error=False)
    return dg.build_run_status_sensor_context(
        sensor_name="run_failed",
        dagster_instance=instance,
        dagster_run=done.dagster_run,
        dagster_event=done.get_run_failure_event(),
    ).for_run_failure()


def test_a_failed_run_is_told_to_the_webhook(webhook, monkeypatch):
    monkeypatch.setenv("HAIR_PIPELINE_ALERT_WEBHOOK", webhook)
    monkeypatch.setenv("HAIR_PIPELINE_DAGSTER_URL", "https://dagster.example/")
    with dg.DagsterInstance.ephemeral() as instance:
        context = failed_run_context(instance)
        run_failed(context)
    (told,) = Webhook.got
    assert "label 17 is broken" in told["text"]
    assert f"https://dagster.example/runs/{context.dagster_run.run_id}" in told["text"]


def test_a_failed_run_of_the_command_line_is_told_too(webhook, monkeypatch):
    """Unlike the daemon's, such a run belongs to no code location."""
    monkeypatch.setenv("HAIR_PIPELINE_ALERT_WEBHOOK", webhook)
    with dg.DagsterInstance.ephemeral() as instance:

        def tick(cursor: str | None) -> str | None:
            with dg.build_sensor_context(instance=instance, cursor=cursor, repository_name="__repository__") as context:
                context._code_location_origin = RegisteredCodeLocationOrigin("hair_pipeline")
                return run_failed.evaluate_tick(context).cursor

        cursor = tick(None)
        failed_run_context(instance)
        tick(cursor)
    (told,) = Webhook.got
    assert "label 17 is broken" in told["text"]


def test_a_webhook_that_is_briefly_away_is_tried_again(webhook, monkeypatch):
    monkeypatch.setattr(alerts, "WAITS", (0.0, 0.0))
    Webhook.answers[:] = [503, 503]
    post(webhook, "a run failed")
    assert Webhook.got == [{"text": "a run failed"}] * 3
    Webhook.got.clear()
    Webhook.answers[:] = [404]
    with pytest.raises(PipelineError, match="could not be sent"):
        post(webhook, "a run failed")
    assert len(Webhook.got) == 1


def test_a_webhook_that_is_away_shows_in_the_sensor(monkeypatch):
    monkeypatch.setattr(alerts, "WAITS", ())
    monkeypatch.setenv("HAIR_PIPELINE_ALERT_WEBHOOK", "http://127.0.0.1:9/away")
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(PipelineError, match="could not be sent"):
        run_failed(failed_run_context(instance))


@pytest.mark.parametrize(
    "url", ["http://chat.example:port/services/SECRET", "http://chat.example/services/SECRET WORD"]
)
def test_a_webhook_that_is_no_url_is_not_said(url, monkeypatch):
    with pytest.raises(PipelineError, match="HAIR_PIPELINE_ALERT_WEBHOOK") as caught:
        post(url, "a run failed")
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))
