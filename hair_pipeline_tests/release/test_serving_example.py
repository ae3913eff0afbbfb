"""The example's worker and API, started for real: a request, a promotion with its restart, the same request."""

import asyncio
import http.client
import importlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import read_image
from hair_pipeline.processing.bald import make_bald
from hair_pipeline.processing.fringe import with_forehead
from hair_pipeline.profile import ReleaseConfig
from hair_pipeline.release.export import export_weights
from hair_pipeline.release.registry import Registry, promote_and_deploy, record_candidate
from hair_pipeline_tests.evaluation.tiny_world import make_world, write_stage2
from hair_pipeline_tests.inputs.tiny_inputs import draw_person, embedding, write_face, write_rgb
from hair_pipeline_tests.release.test_export import judge

Celery = pytest.importorskip("celery", reason="uv sync --extra serving").Celery
HTTPException = pytest.importorskip("fastapi", reason="uv sync --extra serving").HTTPException
uvicorn = pytest.importorskip("uvicorn", reason="uv sync --extra serving")
pytestmark = pytest.mark.timeout(400)

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "serving"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def broker(tmp_path: Path):
    """Redis where Debian's server is installed, else files."""
    program = shutil.which("redis-server")
    if program is None:
        yield str(tmp_path / "broker")
        return
    port = free_port()
    server = subprocess.Popen(
        [program, "--port", str(port), "--save", "", "--dir", str(tmp_path)], stdout=subprocess.DEVNULL
    )
    yield f"redis://127.0.0.1:{port}/0"
    server.terminate()
    server.wait(timeout=20)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example's modules can be imported; its queue is a folder, and no worker takes anything from it."""
    monkeypatch.setenv("SERVING_BROKER", str(tmp_path / "broker"))
    monkeypatch.setenv("SERVING_PHOTOS", str(tmp_path / "my photos"))
    monkeypatch.setenv("HAIR_PIPELINE_TRAINING_FACE_ROOT", str(tmp_path / "faces"))
    monkeypatch.syspath_prepend(EXAMPLE)
    yield
    for name in ("api", "tasks", "celeryconfig"):
        sys.modules.pop(name, None)


def test_the_health_check_does_not_queue_behind_requests(example: None) -> None:
    api: Any = importlib.import_module("api")
    for number in range(3):
        api.hand_over("try_on", "anna.png", "bob.png", f"{number}.png")

    def says(status: int) -> None:
        with pytest.raises(HTTPException) as said:
            asyncio.run(api.health())
        assert said.value.status_code == status

    says(503)
    api.worker.backend.set(api.HEARTBEAT, json.dumps({"version": "abc", "at": time.time()}))
    assert asyncio.run(api.health()) == {"version": "abc"}
    api.worker.backend.set(api.HEARTBEAT, json.dumps({"version": "abc", "at": time.time() - 60}))
    says(503)
    api.worker.backend.set(api.HEARTBEAT, '{"version": "ab')  # half written
    says(503)


def until(number: int, folder: Path) -> list[Path]:
    """So many files in a folder, waited for."""
    deadline = time.monotonic() + 20
    while len(found := list(folder.glob("*.msg"))) < number:
        assert time.monotonic() < deadline, f"{len(found)} of {number}"
        time.sleep(0.05)
    return found


def test_a_request_that_nobody_waits_for_any_more_is_not_drawn(example: None, tmp_path: Path) -> None:
    api: Any = importlib.import_module("api")
    api.hand_over("try_on", "anna.png", "bob.png", "x.png")
    (message,) = until(1, tmp_path / "broker" / "queue")
    expires = datetime.fromisoformat(json.loads(message.read_text())["headers"]["expires"])
    assert 0 < (expires - datetime.now(UTC)).total_seconds() <= api.REQUEST_SECONDS


def test_fifty_open_requests_delay_neither_the_health_check_nor_each_other(example: None, tmp_path: Path) -> None:
    api: Any = importlib.import_module("api")
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(api.app, port=port, log_level="warning"))
    running = threading.Thread(target=server.run)
    running.start()
    while not server.started:
        time.sleep(0.01)
    body = json.dumps({"person": "anna.png", "style": "bob.png", "result": "x.png"})
    open_requests = [http.client.HTTPConnection("127.0.0.1", port, timeout=20) for _ in range(50)]
    try:
        for connection in open_requests:
            connection.request("POST", "/try-on", body, {"Content-Type": "application/json"})
        until(40, tmp_path / "broker" / "queue")  # Starlette's threads for sync endpoints
        api.worker.backend.set(api.HEARTBEAT, json.dumps({"version": "abc", "at": time.time()}))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            assert json.load(answer) == {"version": "abc"}
        waiting = until(50, tmp_path / "broker" / "queue")
        for message in waiting:
            task = json.loads(message.read_text())["headers"]["id"]
            api.worker.backend.store_result(task, {"version": "abc", "result": "x.png"}, "SUCCESS")
        for connection in open_requests:
            assert json.load(connection.getresponse()) == {"version": "abc", "result": "x.png"}
    finally:
        server.force_exit = server.should_exit = True
        running.join(timeout=20)
    assert not list((tmp_path / "broker" / "results").glob("celery-task-meta-*"))


def test_the_worker_says_its_version_until_it_ends(example: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: Any = importlib.import_module("tasks")
    monkeypatch.setattr(tasks, "load", lambda _: SimpleNamespace(version="abc"))
    monkeypatch.setattr(tasks, "BEAT_SECONDS", 0.01)
    tasks.load_model()
    while not tasks.app.backend.get(tasks.HEARTBEAT):
        time.sleep(0.01)
    assert json.loads(tasks.app.backend.get(tasks.HEARTBEAT) or "{}").get("version", "abc") == "abc"
    tasks.end()
    while tasks.app.backend.get(tasks.HEARTBEAT) is not None:
        time.sleep(0.01)


def test_clients_get_no_path_of_the_server(example: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: Any = importlib.import_module("tasks")
    file = tmp_path / "my photos" / "anna.jpg"

    def refuse(*_: object) -> None:
        raise PipelineError(f"no hair mask (looked in {file} and {tmp_path / 'faces' / 'anna'})", file=file)

    monkeypatch.setattr(tasks, "redraw", refuse)
    answer = tasks.try_on("anna.jpg", "bob.jpg", "x.png")
    assert answer == {"error": "anna.jpg: no hair mask (looked in anna.jpg and anna)"}
    assert tasks.without_paths("cannot read '/etc/secret/key.pem': 1/2 done") == "cannot read 'key.pem': 1/2 done"


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SERVING_RUN", str(tmp_path))
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.delitem(sys.modules, "control", raising=False)
    return importlib.import_module("control")


def test_the_api_is_restarted_while_the_worker_before_still_answers(control: Any, monkeypatch) -> None:
    done: list[str] = []
    for action in ("stop", "start"):
        monkeypatch.setattr(control, action, lambda name, action=action: done.append(f"{action} {name}"))
    monkeypatch.setattr(sys, "argv", ["control.py", "restart"])
    control.main()
    assert done == ["stop api", "start api", "stop worker", "start worker"]


def test_control_starts_one_of_each_and_ends_no_other_process(
    control: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "COMMANDS", {"worker": ["http.server", "--bind", "127.0.0.1", str(free_port())]})
    control.start("worker")
    pid_file = tmp_path / "worker.pid"
    known = pid_file.read_text()
    with pytest.raises(SystemExit, match="worker runs already"):
        control.start("worker")
    assert pid_file.read_text() == known
    control.stop("worker")
    assert not pid_file.exists()
    other = subprocess.Popen(["sleep", "30"], start_new_session=True)
    pid_file.write_text(f"{other.pid} {known.split()[1]}")  # the machine was restarted since
    control.stop("worker")
    assert other.poll() is None
    other.kill()
    other.wait()


@pytest.mark.slow
def test_a_promotion_reaches_the_running_service(tmp_path: Path, broker: str, monkeypatch) -> None:
    world = make_world(tmp_path / "world", people=5, customers=6)
    settings, profile = world.settings, world.profile
    profile_file = tmp_path / "profile.yaml"
    profile_file.write_text(json.dumps(profile.model_dump(mode="json")))
    photos, port = tmp_path / "photos", free_port()
    people = {"anna": draw_person(0, size=160), "bob": draw_person(1, size=128)}
    for number, (name, person) in enumerate(people.items()):
        write_rgb(photos / f"{name}.png", person.photo)
        write_face(photos / name, person, embedding(number))
    values = {
        "HAIR_PIPELINE_PROFILE": str(profile_file),
        "HAIR_PIPELINE_TRAINING_ROOT": str(settings.training_root),
        "SERVING_PHOTOS": str(photos),
        "SERVING_BROKER": broker,
        "SERVING_RUN": str(tmp_path / "run"),
        "SERVING_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    release = ReleaseConfig(
        server_config=tmp_path / "model.json",
        restart_commands=((sys.executable, str(EXAMPLE / "control.py"), "restart"),),
        health_url=f"http://127.0.0.1:{port}/health",
        health_timeout=150,
    )
    registry = Registry(settings.registry_path)

    def approved(seed: int) -> str:
        write_stage2(settings, profile, seed=seed)
        judge(world, "approve", "production" if registry.production() else "untrained")
        version = export_weights(settings, profile).version
        record_candidate(settings, profile)
        registry.sign_off(version, "Kim", "approve")
        return version

    def request(result: str, person: str = "anna.png") -> Any:
        body = json.dumps({"person": person, "style": "bob.png", "result": result}).encode()
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/try-on", data=body, headers=headers)
        with urllib.request.urlopen(asked, timeout=120) as answer:
            return json.load(answer)

    def ask(result: str) -> tuple[str, np.ndarray]:
        said = request(result)
        return said["version"], read_image(photos / said["result"])

    try:
        first = approved(0)
        promote_and_deploy(registry, first, release)
        version, before = ask("before.png")
        assert version == first
        second = approved(1)
        assert ask("meanwhile.png")[0] == first
        with pytest.raises(urllib.error.HTTPError) as refused:
            request("nobody.png", "nobody.jpg")
        assert refused.value.code == 422
        told = refused.value.read().decode()
        assert "nobody.jpg" in told
        assert str(tmp_path) not in told
        queue = Celery(broker=broker) if "://" in broker else None
        for number in range(40 if queue else 0):  # more than are drawn while the server restarts
            queue.send_task("try_on", ("anna.png", "bob.png", f"{number}.png"))  # type: ignore[union-attr]
        promote_and_deploy(registry, second, release)
        version, after = ask("after.png")
        assert version == second
        assert json.loads((tmp_path / "model.json").read_text())["version"] == second
    except Exception:
        for log in (tmp_path / "run").glob("*.log"):
            print(log.name, log.read_text()[-4000:])
        raise
    finally:
        subprocess.run([sys.executable, str(EXAMPLE / "control.py"), "stop"], check=True, timeout=90)
    anna = people["anna"]
    masks = with_forehead(anna.hair_mask, anna.face_mask, np.array(anna.box, np.float32))
    repaint = make_bald(anna.photo, *masks, profile.processing.bald)[1]
    assert (before != after).any()
    for picture in (before, after):
        assert np.array_equal(picture[~repaint], anna.photo[~repaint])
