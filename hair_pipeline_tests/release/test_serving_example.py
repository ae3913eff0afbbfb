"""The example's worker and API, started for real: a request, a promotion with its restart, the same request."""

import json
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from hair_pipeline.files import read_image
from hair_pipeline.processing.bald import make_bald
from hair_pipeline.processing.fringe import with_forehead
from hair_pipeline.profile import ReleaseConfig
from hair_pipeline.release.export import export_weights
from hair_pipeline.release.registry import Registry, promote_and_deploy, record_candidate
from hair_pipeline_tests.evaluation.tiny_world import make_world, write_stage2
from hair_pipeline_tests.inputs.tiny_inputs import draw_person, embedding, write_face, write_rgb
from hair_pipeline_tests.release.test_export import judge

pytest.importorskip("celery", reason="uv sync --extra serving")
pytest.importorskip("fastapi", reason="uv sync --extra serving")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

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
        judge(world, "approve")
        version = export_weights(settings, profile).version
        record_candidate(settings, profile)
        registry.sign_off(version, "Kim", "approve")
        return version

    def ask(result: str) -> tuple[str, np.ndarray]:
        body = json.dumps({"person": "anna.png", "style": "bob.png", "result": result}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/try-on", data=body, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            said = json.load(answer)
        return said["version"], read_image(photos / said["result"])

    try:
        first = approved(0)
        promote_and_deploy(registry, first, release)
        version, before = ask("before.png")
        assert version == first
        second = approved(1)
        assert ask("meanwhile.png")[0] == first
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
