"""A promotion or a rollback with its deployment: registry and server follow each other, whatever fails."""

import json
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.picture_settings import PictureSettings
from hair_pipeline.evaluation.verdicts import VerdictRecord
from hair_pipeline.files import write_json
from hair_pipeline.profile import Profile, ReleaseConfig
from hair_pipeline.release import registry as release
from hair_pipeline.release.deploy import deploy
from hair_pipeline.release.registry import promote_and_deploy, rollback_and_deploy
from hair_pipeline.release.registry_file import Registry
from hair_pipeline.settings import Settings
from hair_pipeline_tests.release.tiny_registry import python, signed


def test_deploying_writes_the_config_restarts_and_checks_health(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    template, served = tmp_path / "server.ini.j2", tmp_path / "server" / "server.ini"
    template.write_text("[model]\nversion = {{ version }}\nfolder = {{ folder }}\n")
    log = tmp_path / "restarts"
    restart = python(f"import os; open({str(log)!r}, 'a').write(os.environ['HAIR_PIPELINE_VERSION'] + ' ')")
    healthy = python(f"import sys; sys.exit(0 if 'version = a' in open({str(served)!r}).read() else 1)")
    config = ReleaseConfig(
        server_config=served, server_template=template, restart_commands=(restart, restart), health_command=healthy
    )
    promote_and_deploy(registry, "a", config)
    assert served.read_text() == f"[model]\nversion = a\nfolder = {registry.folder('a')}\n"
    assert log.read_text() == "a a "
    assert registry.state()["history"][-1]["event"] == "deployed"
    plain = ReleaseConfig(server_config=tmp_path / "server.json")
    deploy("a", registry.folder("a"), plain)
    assert json.loads((tmp_path / "server.json").read_text()) == {"version": "a", "folder": str(registry.folder("a"))}


@pytest.fixture
def no_http_server() -> Iterator[str]:
    """A server whose answers are no HTTP."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.request.recv(10_000)
            self.wfile.write(b"busy\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/health"
        server.shutdown()


FAULTS = {
    "worker is down": {"restart_commands": (python("import sys; sys.exit('worker is down')"),)},
    "did not end within": {"restart_commands": (python("import time; time.sleep(30)"),), "restart_timeout": 0.3},
    "cannot be started": {"restart_commands": (("no-such-program-here",),)},
    "not healthy after": {"health_command": ("false",), "health_timeout": 0.2},
    "http://127.0.0.1:9": {"health_url": "http://127.0.0.1:9/health", "health_timeout": 0.2},
    "health: busy": {"health_url": "not http", "health_timeout": 0.2},
    "cannot be rendered": {"server_template": "broken.j2"},
    "template cannot be read": {"server_template": "missing.j2"},
}


@pytest.mark.parametrize("said", FAULTS)
def test_a_failed_deployment_brings_registry_and_server_back(
    tmp_path: Path, said: str, request: pytest.FixtureRequest
) -> None:
    registry = signed(tmp_path, "a")
    signed(tmp_path, "b")
    (tmp_path / "broken.j2").write_text("{{ no_such_name }}")
    served = tmp_path / "server.json"
    promote_and_deploy(registry, "a", ReleaseConfig(server_config=served))
    faults = dict(FAULTS[said])
    if faults.get("health_url") == "not http":
        faults["health_url"] = request.getfixturevalue("no_http_server")
    if "server_template" in faults:
        faults["server_template"] = tmp_path / str(faults["server_template"])
    with pytest.raises(PipelineError, match=rf"(?s){said}.*in production: a.*going back failed"):
        promote_and_deploy(registry, "b", ReleaseConfig(server_config=served, **faults))
    assert registry.production() == "a"
    assert registry.state()["previous"] == []
    if "server_template" not in faults:
        assert json.loads(served.read_text())["version"] == "a"
    assert registry.state()["history"][-1]["event"] == "deploy_failed"


def test_the_server_goes_back_too_when_only_the_new_version_fails(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    signed(tmp_path, "b")
    served = tmp_path / "server.json"
    refuses_b = python("import os, sys; sys.exit('b is broken' if os.environ['HAIR_PIPELINE_VERSION'] == 'b' else 0)")
    config = ReleaseConfig(server_config=served, restart_commands=(refuses_b,))
    promote_and_deploy(registry, "a", config)
    with pytest.raises(PipelineError, match=r"b is broken.*in production: a; the server went back too"):
        promote_and_deploy(registry, "b", config)
    assert json.loads(served.read_text())["version"] == "a"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), IndexError("list index out of range")])
@pytest.mark.parametrize("first", [False, True])
def test_whatever_ends_a_deployment_the_promotion_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, first: bool
) -> None:
    registry = signed(tmp_path, "a")
    signed(tmp_path, "b")
    before = None if first else "a"
    if before:
        promote_and_deploy(registry, before, ReleaseConfig())

    def interrupted(version: str | None, *_: object) -> list[str]:
        if version == "b":
            raise error
        return []

    monkeypatch.setattr(release, "deploy", interrupted)
    with pytest.raises(type(error)) as said:
        promote_and_deploy(registry, "b", ReleaseConfig())
    assert f"the promotion of b was taken back, in production: {before or 'nothing'}" in said.value.__notes__[-1]
    assert registry.production() == before
    assert [event["reason"] for event in registry.state()["history"] if event["event"] == "deploy_failed"] == [
        f"{type(error).__name__}: {error}".removesuffix(": ")
    ]


def test_a_promotion_that_cannot_be_taken_back_names_both_errors_and_production(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = signed(tmp_path, "a")
    signed(tmp_path, "b")
    promote_and_deploy(registry, "a", ReleaseConfig())
    registry.sign_off("a", "Kim", "reject")  # even then: it was in production a moment ago
    with pytest.raises(PipelineError, match="in production: a"):
        promote_and_deploy(registry, "b", ReleaseConfig(restart_commands=(("false",),)))
    weights = registry.folder("a") / "weights.safetensors"
    damage = python(f"open({str(weights)!r}, 'w').close(); raise SystemExit('worker is down')")
    with pytest.raises(PipelineError, match=r"(?s)worker is down.*back failed too.*gone or changed.*in production: b"):
        promote_and_deploy(registry, "b", ReleaseConfig(restart_commands=(damage,)))
    assert registry.production() == "b"


def test_the_first_version_is_withdrawn_when_its_deployment_fails(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    with pytest.raises(PipelineError, match="in production: nothing"):
        promote_and_deploy(registry, "a", ReleaseConfig(restart_commands=(("false",),)))
    assert registry.production() is None
    assert registry.show("a")["status"] == "approved"


def test_a_copy_that_cannot_be_written_does_not_fail_the_change(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    registry.backup.unlink()
    registry.backup.mkdir()
    server = tmp_path / "server.json"
    promote_and_deploy(registry, "a", ReleaseConfig(server_config=server))
    assert registry.production() == json.loads(server.read_text())["version"] == "a"


def test_rollback_deploys_the_previous_version(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    signed(tmp_path, "b")
    config = ReleaseConfig(server_config=tmp_path / "server.json")
    promote_and_deploy(registry, "a", config)
    promote_and_deploy(registry, "b", config)
    assert rollback_and_deploy(registry, "halo reported", config) == "a"
    assert json.loads((tmp_path / "server.json").read_text())["version"] == "a"
    registry.promote("b")
    failing = config.model_copy(update={"restart_commands": (("false",),)})
    with pytest.raises(PipelineError, match="registry says a again") as said:
        rollback_and_deploy(registry, "halo again", failing)
    assert "registry deploy" in said.value.message
    assert registry.production() == "a"


def test_an_interrupted_rollback_says_what_the_registry_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = signed(tmp_path, "a")
    signed(tmp_path, "b")
    for version in ("a", "b"):
        promote_and_deploy(registry, version, ReleaseConfig())

    def interrupted(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(release, "deploy", interrupted)
    with pytest.raises(KeyboardInterrupt) as said:
        rollback_and_deploy(registry, "halo", ReleaseConfig())
    assert said.value.__notes__ == ["the registry says a again, but the server may not serve it"]
    assert registry.production() == "a"


def test_a_damaged_version_is_not_deployed_again(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    config = ReleaseConfig(server_config=tmp_path / "server.json")
    promote_and_deploy(registry, "a", config)
    config.server_config.unlink()  # type: ignore[union-attr]
    (registry.folder("a") / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(PipelineError, match=r"gone or changed.*weights\.safetensors") as said:
        release.deploy_production(registry, config)
    assert "restore them" in said.value.remedy
    assert "registry rollback" in said.value.remedy
    assert not (tmp_path / "server.json").exists()
    assert registry.state()["history"][-1]["event"] == "deploy_failed"


def test_a_second_deployment_at_the_same_time_is_refused(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    with registry.deploying(), pytest.raises(PipelineError, match="another promotion or rollback"):
        promote_and_deploy(Registry(registry.path), "a", ReleaseConfig())
    assert registry.production() is None
    promote_and_deploy(registry, "a", ReleaseConfig())


def test_a_version_that_was_taken_out_of_production_waits_for_a_new_sign_off(tmp_path: Path, monkeypatch) -> None:
    settings = Settings(training_root=tmp_path)
    registry = signed(tmp_path, "old")
    signed(tmp_path, "new")
    registry.promote("old")
    monkeypatch.setattr(release, "require_evaluation", lambda *_: None)
    folder = "checkpoints/versions/new"
    record = {"version": "new", "folder": folder, "files": registry.show("new")["files"]}
    write_json(settings.checkpoints / release.EXPORTED, record)

    profile = Profile(name="test")
    judged = PictureSettings.of(profile)
    verdict = VerdictRecord("approve", [], "t1", "new", "old", "old", False, judged, "", "")
    monkeypatch.setattr(release, "require_approval", lambda *_: verdict)
    write_json(settings.training_root / folder / release.CARD_FILE, judged.model_dump(mode="json"))

    def candidate() -> release.CandidateState:
        return release.record_candidate(settings, profile)

    assert candidate().state == "promoted"
    registry.rollback("halo reported")
    waiting = candidate()
    assert waiting.state == "awaiting sign-off"
    assert "registry sign-off new --reviewer NAME" in waiting.message
    assert registry.production() == "old"
    registry.sign_off("new", "Lee", "approve", "not its fault")
    assert candidate().state == "promoted"

    profile = Profile(name="test", release=ReleaseConfig(server_config=tmp_path / "server.json"))
    with pytest.raises(PipelineError, match="its deployment did not end well or was interrupted") as unfinished:
        candidate()  # as after a kill between promotion and deployment
    assert "registry deploy" in unfinished.value.remedy
    release.deploy_production(registry, profile.release)
    assert candidate().state == "promoted"

    write_json(settings.training_root / folder / release.CARD_FILE, judged.model_dump(mode="json") | {"steps": 1})
    with pytest.raises(PipelineError, match="judged with other settings: steps is 1, not 30"):
        candidate()


def test_promotion_and_rollback_load_no_torch() -> None:
    """In an emergency the registry must answer at once."""
    code = "import sys, hair_pipeline.release.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == 0
