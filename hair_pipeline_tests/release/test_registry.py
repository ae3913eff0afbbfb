"""The registry's state machine: what may follow what, under concurrency and under a kill."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import hash_file
from hair_pipeline.profile import ReleaseConfig
from hair_pipeline.release.registry import promote_and_deploy
from hair_pipeline.release.registry_file import Registry, status

APPROVE = {"verdict": "approve", "id": "t1"}


def make_version(root: Path, version: str, verdict: dict[str, str] | None = None) -> Registry:
    folder = root / "checkpoints" / "versions" / version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_bytes(version.encode() * 100)
    registry = Registry(root / "registry" / "registry.json")
    hashes = {"weights.safetensors": hash_file(folder / "weights.safetensors")}
    registry.register(version, folder, hashes, APPROVE if verdict is None else verdict)
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
    make_version(tmp_path, "a", APPROVE)
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
    registry.path.write_text("{}")
    with pytest.raises(PipelineError, match="not a registry"):
        registry.list()


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


def test_a_kill_at_any_moment_leaves_a_whole_registry(tmp_path: Path) -> None:
    registry = make_version(tmp_path, "a")
    seen = 0
    for trial in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(registry.path)], stdout=subprocess.PIPE, cwd=Path.cwd(), env=os.environ
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.01 + 0.013 * trial)
        process.send_signal(signal.SIGKILL)
        process.wait()
        state = json.loads(registry.path.read_text(encoding="utf-8"))
        entries = len(state["versions"]["a"]["sign_offs"])
        assert entries >= seen
        assert len(state["history"]) == entries + 1
        seen = entries
    assert seen > 0
    registry.sign_off("a", "Kim", "approve")  # the lock is free, leftovers are cleared away
    assert not list(registry.path.parent.glob("*.tmp"))
    assert not list(registry.path.parent.glob(".*.tmp"))


def test_a_failed_or_slow_deployment_is_taken_back(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    signed(tmp_path, "b")
    promote_and_deploy(registry, "a", ReleaseConfig(deploy_command=(sys.executable, "-c", "pass")))
    failing = ReleaseConfig(deploy_command=(sys.executable, "-c", "import sys; sys.exit('worker is down')"))
    with pytest.raises(PipelineError, match=r"worker is down.*in production: a"):
        promote_and_deploy(registry, "b", failing)
    assert registry.production() == "a"
    slow = ReleaseConfig(deploy_command=(sys.executable, "-c", "import time; time.sleep(30)"), deploy_timeout=0.3)
    with pytest.raises(PipelineError, match="did not end within"):
        promote_and_deploy(registry, "b", slow)
    assert registry.production() == "a"
    missing = ReleaseConfig(deploy_command=("no-such-program-here",))
    with pytest.raises(PipelineError, match="cannot be started"):
        promote_and_deploy(registry, "b", missing)
    assert registry.state()["previous"] == []


def test_the_first_version_is_withdrawn_when_its_deployment_fails(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    with pytest.raises(PipelineError, match="in production: nothing"):
        promote_and_deploy(registry, "a", ReleaseConfig(deploy_command=("false",)))
    assert registry.production() is None
    assert registry.show("a")["status"] == "approved"


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

    @rule(version=st.sampled_from(versions), verdict=st.sampled_from(["approve", "reject", "inconclusive"]))
    def register(self, version: str, verdict: str) -> None:
        make_version(self.root, version, {"verdict": verdict})
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
            assert not previous

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
