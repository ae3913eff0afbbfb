"""The registry's state machine: what may follow what, under concurrency and under a kill."""

import json
import multiprocessing
import os
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pydantic import ValidationError

from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.contenders import version_folder
from hair_pipeline.evaluation.picture_settings import PictureSettings
from hair_pipeline.evaluation.registered import read_registry
from hair_pipeline.evaluation.verdicts import VerdictRecord
from hair_pipeline.files import hash_file, write_json
from hair_pipeline.profile import Profile, ReleaseConfig
from hair_pipeline.release import registry as release
from hair_pipeline.release import registry_file
from hair_pipeline.release.deploy import deploy
from hair_pipeline.release.registry import promote_and_deploy, rollback_and_deploy
from hair_pipeline.release.registry_file import Registry, status
from hair_pipeline.settings import Settings

APPROVE = {"verdict": "approve", "id": "t1", "against": "untrained base", "against_first": True}
OPPONENTS = {"b": "a", "c": "b", "new": "old"}
"""Whom a version won against."""


def approval(version: str) -> dict[str, Any]:
    return APPROVE | {"against_version": OPPONENTS.get(version, "base inpainting")}


def make_version(root: Path, version: str, verdict: dict[str, Any] | None = None) -> Registry:
    folder = root / "checkpoints" / "versions" / version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_bytes(version.encode() * 100)
    registry = Registry(root / "registry" / "registry.json")
    hashes = {"weights.safetensors": hash_file(folder / "weights.safetensors")}
    registry.register(version, folder, hashes, approval(version) if verdict is None else verdict)
    return registry


def signed(root: Path, version: str) -> Registry:
    registry = make_version(root, version)
    registry.sign_off(version, "Kim", "approve", "seams fine")
    return registry


def test_promotion_needs_verdict_sign_off_and_intact_files(tmp_path: Path) -> None:
    registry = make_version(tmp_path, "a", {"verdict": "inconclusive"})
    registry.sign_off("a", "Kim", "approve")
    with pytest.raises(PipelineError, match="inconclusive"):
        registry.promote("a")
    make_version(tmp_path, "a")
    with pytest.raises(PipelineError, match="nobody has signed it off since its last A/B test"):
        registry.promote("a")
    registry.sign_off("a", "Kim", "approve")
    make_version(tmp_path, "b")
    with pytest.raises(PipelineError, match="signed it off") as refused:
        registry.promote("b")
    assert "registry sign-off b --reviewer NAME --decision approve" in refused.value.message
    registry.sign_off("b", "Kim", "approve")
    registry.sign_off("b", "Lee", "reject", "blurred roots")
    with pytest.raises(PipelineError, match="rejected by Lee"):
        registry.promote("b")
    registry.sign_off("b", "Lee", "approve")
    (registry.folder("b") / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(PipelineError, match=r"gone or changed.*weights\.safetensors"):
        registry.promote("b")
    assert registry.production() is None
    assert registry.promote("a") is None
    assert registry.production() == "a"
    with pytest.raises(PipelineError, match="already"):
        registry.promote("a")


def test_rollback_restores_the_previous_version_and_history_only_grows(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    signed(tmp_path, "b")
    registry.promote("a")
    assert registry.promote("b") == "a"
    before = registry.state()["history"]
    assert registry.rollback("halo reported") == "a"
    assert registry.production() == "a"
    history = registry.state()["history"]
    assert history[: len(before)] == before
    assert history[-1]["event"] == "rolled_back"
    assert history[-1]["reason"] == "halo reported"
    with pytest.raises(PipelineError, match="no earlier version"):
        registry.rollback()
    assert [registry.show(v)["status"] for v in ("a", "b")] == ["production", "approved"]


def test_a_version_never_changes_its_files(tmp_path: Path) -> None:
    registry = make_version(tmp_path, "a")
    with pytest.raises(PipelineError, match="other files"):
        registry.register("a", registry.folder("a"), {"weights.safetensors": "0" * 64}, APPROVE)


@pytest.mark.parametrize("call", ["show", "promote", "folder", "damaged_files"])
def test_unknown_versions_are_named(tmp_path: Path, call: str) -> None:
    with pytest.raises(PipelineError, match="no version x"):
        getattr(make_version(tmp_path, "a"), call)("x")


def test_a_bad_decision_and_a_broken_file_are_refused(tmp_path: Path) -> None:
    registry = make_version(tmp_path, "a")
    with pytest.raises(PipelineError, match="maybe"):
        registry.sign_off("a", "Kim", "maybe")
    with pytest.raises(PipelineError, match="no name"):
        registry.sign_off("a", " ", "approve")
    with pytest.raises(PipelineError, match="not UTF-8"):
        registry.sign_off("a", "Kim\udc9b", "approve")
    registry.path.write_text("{}")
    with pytest.raises(PipelineError, match="not a registry"):
        registry.list()


def test_a_broken_registry_is_restored_from_its_copy(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    registry.promote("a")
    whole = registry.path.read_text()

    def spoil(how: Callable[[], object]) -> None:
        how()
        settings = Settings(training_root=tmp_path)
        for call in (
            registry.list,
            lambda: registry.sign_off("a", "Lee", "reject"),
            lambda: version_folder("a", settings),
        ):
            with pytest.raises(PipelineError) as said:
                call()
            assert said.value.remedy == f"restore it: cp {registry.backup} {registry.path}"
        shutil.copyfile(registry.backup, registry.path)
        assert registry.path.read_text() == whole
        assert registry.production() == "a"

    spoil(lambda: registry.path.write_text(whole[: len(whole) // 2]))
    spoil(registry.path.unlink)
    state = json.loads(whole)
    spoil(lambda: write_json(registry.path, {key: value for key, value in state.items() if key != "previous"}))
    spoil(lambda: write_json(registry.path, state | {"versions": {}}))
    for wrong in ({"previous": None}, {"versions": []}, {"history": [{}]}, {"production": ["a"]}):
        spoil(lambda wrong=wrong: write_json(registry.path, state | wrong))
    record = state["versions"]["a"]
    for wrong in ({"verdict": {}}, {"sign_offs": [{}]}, {"files": []}, {"folder": 3}):
        spoil(lambda wrong=wrong: write_json(registry.path, state | {"versions": {"a": record | wrong}}))
    del state["versions"]["a"]["files"]
    spoil(lambda: write_json(registry.path, state))


def test_a_copy_that_cannot_be_written_does_not_fail_the_change(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    registry.backup.unlink()
    registry.backup.mkdir()
    server = tmp_path / "server.json"
    promote_and_deploy(registry, "a", ReleaseConfig(server_config=server))
    assert registry.production() == json.loads(server.read_text())["version"] == "a"


@pytest.mark.parametrize(("first", "said"), [(False, "nothing is in production"), (True, "x is in production")])
def test_an_approval_counts_against_the_version_in_production_alone(tmp_path: Path, first: bool, said: str) -> None:
    registry = make_version(tmp_path, "a", approval("a") | {"against_first": first})
    registry.sign_off("a", "Kim", "approve")
    if first:
        signed(tmp_path, "x")
        registry.promote("x")
    with pytest.raises(PipelineError, match=f"it was compared with .*{said}") as refused:
        registry.promote("a")
    assert 'hair-pipeline run --select "key:ab_verdict+" --force' in refused.value.remedy
    registry.register("a", registry.folder("a"), registry.show("a")["files"], approval("a") | {"against_version": "x"})
    registry.promote("a")


def test_only_what_a_person_may_promote_is_called_promotable(tmp_path: Path) -> None:
    registry = make_version(tmp_path, "a")
    make_version(tmp_path, "undecided", approval("undecided") | {"verdict": "inconclusive"})
    make_version(tmp_path, "other", approval("other") | {"against_version": "x", "against_first": False})
    assert registry.promotable() == {"a": True}
    registry.sign_off("a", "Kim", "approve")
    assert registry.promotable() == {"a": False}
    registry.promote("a")
    assert registry.promotable() == {}


def test_the_registry_is_read_once_to_tell_what_is_promotable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = make_version(tmp_path, "a")
    versions = {f"{number}": registry.state()["versions"]["a"] for number in range(20)}
    write_json(registry.path, registry.state() | {"versions": versions})
    reads = []
    monkeypatch.setattr(registry_file, "read_registry", lambda path: reads.append(path) or read_registry(path))
    assert registry.promotable() == dict.fromkeys(versions, True)
    assert len(reads) == 1


def test_a_sign_off_counts_for_the_test_it_was_given_on(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    registry.register("a", registry.folder("a"), registry.show("a")["files"], approval("a") | {"id": "t2"})
    assert registry.obstacles("a") == ["nobody has signed it off since its last A/B test"]
    registry.sign_off("a", "Lee", "reject")
    registry.register("a", registry.folder("a"), registry.show("a")["files"], approval("a") | {"id": "t3"})
    assert registry.obstacles("a") == ["rejected by Lee"]
    registry.sign_off("a", "Lee", "approve")
    assert registry.obstacles("a") == []


def test_rollback_to_a_version_that_was_rejected_since_is_asked_for_by_name(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    signed(tmp_path, "b")
    registry.promote("a")
    registry.promote("b")
    registry.sign_off("a", "Kim", "reject", "halo")
    with pytest.raises(PipelineError, match="a was rejected by Kim; nothing was rolled back") as refused:
        registry.rollback("b blurs")
    assert "--force" in refused.value.remedy
    assert registry.production() == "b"
    assert registry.rollback("b blurs", force=True) == "a"


def _promote(root: str, version: str, barrier: object, results: object) -> None:
    registry = Registry(Path(root) / "registry" / "registry.json")
    expected = registry.production()
    barrier.wait()  # type: ignore[attr-defined]
    try:
        registry.promote(version, replacing=expected)
        results.put((version, "won"))  # type: ignore[attr-defined]
    except PipelineError as error:
        results.put((version, error.what))  # type: ignore[attr-defined]


def test_two_concurrent_promotions_have_one_winner_and_one_clear_error(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for trial in range(5):
        root = tmp_path / str(trial)
        for version in ("a", "b"):
            signed(root, version)
        barrier, results = context.Barrier(2), context.Queue()
        processes = [context.Process(target=_promote, args=(str(root), v, barrier, results)) for v in ("a", "b")]
        for process in processes:
            process.start()
        outcome = dict(results.get(timeout=20) for _ in processes)
        for process in processes:
            process.join()
        winners = [version for version, said in outcome.items() if said == "won"]
        assert len(winners) == 1
        assert Registry(root / "registry" / "registry.json").production() == winners[0]
        (loser,) = set(outcome) - set(winners)
        assert f"production changed from None to {winners[0]}" in outcome[loser]


WRITER = """
import sys
from pathlib import Path
from hair_pipeline.release.registry_file import Registry
registry = Registry(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(100000):
    registry.sign_off("a", f"reviewer {number % 50}", "approve", "x" * 2000)
"""

PROMOTER = """
import sys
from pathlib import Path
from hair_pipeline.release.registry_file import Registry
registry = Registry(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(100000):
    registry.promote("b")
    registry.rollback("again")
"""


def killed(code: str, path: Path, seconds: float) -> None:
    """Run code on a registry and kill it without warning after so many seconds."""
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, env=os.environ)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_kill_between_promotion_and_rollback_leaves_one_or_the_other(tmp_path: Path) -> None:
    """Whatever the moment: production is the old or the new version, and fits what the history says last."""
    registry = signed(tmp_path, "a")
    signed(tmp_path, "b")
    registry.promote("a")
    seen = set()
    for trial in range(25):
        if registry.production() == "b":
            registry.rollback("between two trials")
        killed(PROMOTER, registry.path, 0.001 + 0.0037 * trial)
        state = json.loads(registry.path.read_text(encoding="utf-8"))
        assert (state["production"], state["previous"]) in (("a", []), ("b", ["a"]))
        assert state["history"][-1]["version"] == state["production"]
        seen.add(state["production"])
    assert seen == {"a", "b"}


def test_a_kill_at_any_moment_leaves_a_whole_registry(tmp_path: Path) -> None:
    registry = make_version(tmp_path, "a")
    seen = 0
    for trial in range(8):
        killed(WRITER, registry.path, 0.01 + 0.013 * trial)
        state = json.loads(registry.path.read_text(encoding="utf-8"))
        entries = len(state["versions"]["a"]["sign_offs"])
        assert entries >= seen
        assert len(state["history"]) == entries + 1
        seen = entries
    assert seen > 0
    registry.sign_off("a", "Kim", "approve")  # the lock is free, leftovers are cleared away
    assert not list(registry.path.parent.glob("*.tmp"))
    assert not list(registry.path.parent.glob(".*.tmp"))


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


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


def test_a_command_that_takes_too_long_ends_with_what_it_started(tmp_path: Path) -> None:
    left = tmp_path / "left"
    code = f"import subprocess, time; subprocess.Popen(['sh', '-c', 'sleep 3; touch {left}']); time.sleep(30)"
    with pytest.raises(PipelineError, match="did not end within"):
        deploy("a", None, ReleaseConfig(restart_commands=(python(code),), restart_timeout=2.0))
    time.sleep(3)
    assert not left.exists()


def test_a_command_s_output_is_kept_in_part(tmp_path: Path) -> None:
    code = "import sys; sys.exit('x' * 1_000_000 + ' the end')"
    with pytest.raises(PipelineError, match="the end") as error:
        deploy("a", None, ReleaseConfig(restart_commands=(python(code),)))
    assert len(error.value.what) < 10_000


def test_an_answer_that_trickles_in_is_not_waited_for() -> None:
    class Trickle(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.request.recv(10_000)
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 400\r\n\r\n")
            for _ in range(400):
                try:
                    self.wfile.write(b" ")
                except OSError:
                    return
                time.sleep(0.1)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Trickle) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/health"
        with pytest.raises(PipelineError, match="did not end in time"):
            deploy("a", None, ReleaseConfig(health_url=url, health_timeout=0.5))
        server.shutdown()


def test_a_template_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="server_config"):
        ReleaseConfig(server_template=tmp_path / "server.j2")


def test_an_empty_command_is_refused() -> None:
    with pytest.raises(ValidationError):
        ReleaseConfig.model_validate({"restart_commands": [[]]})


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


def test_health_asks_the_server_which_version_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # never asked for a server of this machine
    monkeypatch.delenv("no_proxy", raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"version": "a"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        config = ReleaseConfig(health_url=f"http://127.0.0.1:{server.server_port}/health", health_timeout=0.2)
        assert deploy("a", tmp_path, config) == ["the server is healthy"]
        with pytest.raises(PipelineError, match="serves version a, not b"):
            deploy("b", tmp_path, config)
    finally:
        server.shutdown()
        server.server_close()


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


def test_taking_back_never_undoes_somebody_elses_promotion(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    signed(tmp_path, "b")
    signed(tmp_path, "c")
    for version in ("a", "b", "c"):
        registry.promote(version)
    with pytest.raises(PipelineError, match="changed meanwhile"):
        registry.rollback("late", leaving="b")
    assert registry.production() == "c"


def test_the_first_version_is_withdrawn_when_its_deployment_fails(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    with pytest.raises(PipelineError, match="in production: nothing"):
        promote_and_deploy(registry, "a", ReleaseConfig(restart_commands=(("false",),)))
    assert registry.production() is None
    assert registry.show("a")["status"] == "approved"


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


class RegistryMachine(RuleBasedStateMachine):
    """Any order of commands keeps the registry's promises."""

    versions = ("a", "b", "c")

    @initialize()
    def start(self) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.registry = Registry(self.root / "registry" / "registry.json")
        self.known: set[str] = set()
        self.history: list[object] = []

    @rule(
        version=st.sampled_from(versions),
        verdict=st.sampled_from(["approve", "reject", "inconclusive"]),
        against=st.sampled_from(["production", "untrained", *versions]),
        test=st.sampled_from(["t1", "t2"]),
    )
    def register(self, version: str, verdict: str, against: str, test: str) -> None:
        opponent = self.registry.production() if against == "production" else against
        first = against in ("production", "untrained")
        values = {"verdict": verdict, "id": test, "against_version": opponent, "against_first": first}
        make_version(self.root, version, values)
        self.known.add(version)

    @precondition(lambda self: self.known)
    @rule(version=st.sampled_from(versions), who=st.sampled_from(["Kim", "Lee"]), yes=st.booleans())
    def sign(self, version: str, who: str, yes: bool) -> None:
        if version in self.known:
            self.registry.sign_off(version, who, "approve" if yes else "reject")

    @rule(version=st.sampled_from(versions))
    def promote(self, version: str) -> None:
        allowed = (
            version in self.known and not self.registry.obstacles(version) and self.registry.production() != version
        )
        try:
            self.registry.promote(version)
            assert allowed
            assert self.registry.production() == version
        except PipelineError:
            assert not allowed

    @rule()
    def rollback(self) -> None:
        previous = self.registry.state()["previous"]
        try:
            assert self.registry.rollback() == previous[-1]
        except PipelineError:
            assert not previous or any("rejected" in obstacle for obstacle in self.registry.obstacles(previous[-1]))

    @invariant()
    def history_only_grows_and_production_was_promoted(self) -> None:
        if not hasattr(self, "registry"):
            return
        state = self.registry.state()
        assert state["history"][: len(self.history)] == self.history
        self.history = state["history"]
        promoted = {event["version"] for event in self.history if event["event"] == "promoted"}
        live = {state["production"], *state["previous"]} - {None}
        assert live <= promoted
        assert all(status(state, version) in ("production", "previous") for version in live)

    def teardown(self) -> None:
        self.folder.cleanup()


RegistryMachine.TestCase.settings = hypothesis_settings(max_examples=15, stateful_step_count=20, deadline=None)
TestRegistryMachine = RegistryMachine.TestCase


def test_promotion_and_rollback_load_no_torch() -> None:
    """In an emergency the registry must answer at once."""
    code = "import sys, hair_pipeline.release.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == 0
