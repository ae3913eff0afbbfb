"""The registry's state machine: what may follow what, in any order, and from a damaged file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.contenders import version_folder
from hair_pipeline.evaluation.registered import read_registry
from hair_pipeline.files import write_json
from hair_pipeline.release import registry_file
from hair_pipeline.release.registry_file import Registry, status
from hair_pipeline.settings import Settings
from hair_pipeline_tests.release.tiny_registry import APPROVE, approval, make_version, signed


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
    assert list(map(str, registry.obstacles("a"))) == ["nobody has signed it off since its last A/B test"]
    registry.sign_off("a", "Lee", "reject")
    registry.register("a", registry.folder("a"), registry.show("a")["files"], approval("a") | {"id": "t3"})
    assert list(map(str, registry.obstacles("a"))) == ["rejected by Lee"]
    registry.sign_off("a", "Lee", "approve")
    assert registry.obstacles("a") == []


@pytest.mark.parametrize("name", ["compared twice", "verdict desk"])
def test_a_reviewers_name_is_not_taken_for_a_reason(tmp_path: Path, name: str) -> None:
    registry = make_version(tmp_path, "a")
    registry.sign_off("a", name, "reject")
    with pytest.raises(PipelineError, match=f"rejected by {name}") as refused:
        registry.promote("a")
    assert refused.value.remedy == registry_file.REJECTED


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


def test_rollback_passes_over_an_erased_version_when_told_to(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    for version in ("b", "c"):
        signed(tmp_path, version)
    for version in ("a", "b", "c"):
        registry.promote(version)
    shutil.rmtree(registry.folder("b"))
    with pytest.raises(PipelineError, match="folder of the earlier version b is gone; nothing was rolled back") as said:
        registry.rollback("halo", force=True)
    assert "--force" in said.value.remedy
    assert registry.production() == "c"
    assert registry.rollback("halo", past_erased=True) == "a"
    assert registry.state()["previous"] == []
    assert registry.state()["history"][-1]["passed_over"] == ["b"]


def test_rollback_never_reaches_an_erased_version(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    signed(tmp_path, "b")
    registry.promote("a")
    registry.promote("b")
    shutil.rmtree(registry.folder("a"))
    with pytest.raises(PipelineError, match=r"no earlier version to go back to \(the folders of a are gone\)"):
        registry.rollback("halo", past_erased=True)
    assert registry.production() == "b"


def test_taking_back_never_undoes_somebody_elses_promotion(tmp_path: Path) -> None:
    registry = signed(tmp_path, "a")
    signed(tmp_path, "b")
    signed(tmp_path, "c")
    for version in ("a", "b", "c"):
        registry.promote(version)
    with pytest.raises(PipelineError, match="changed meanwhile"):
        registry.rollback("late", leaving="b")
    assert registry.production() == "c"


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
            assert not previous or any(each.kind == "rejection" for each in self.registry.obstacles(previous[-1]))

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
