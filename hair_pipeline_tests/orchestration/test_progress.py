"""The closing words of a run: what comes next is said of what a person may do, and of nothing else."""

from pathlib import Path

from hair_pipeline.files import hash_file, write_json
from hair_pipeline.orchestration.launch import Outcome
from hair_pipeline.orchestration.progress import summary_lines
from hair_pipeline.release.registry_file import Registry
from hair_pipeline.settings import Settings


def closing(settings: Settings) -> str:
    return "\n".join(summary_lines(settings, Outcome()))


def registered(settings: Settings, verdict: str) -> Registry:
    registry = Registry(settings.registry_path)
    folder = settings.checkpoints / "versions" / "v1"
    write_json(folder / "card.json", {})
    evidence = {"verdict": verdict, "id": "t1", "against_first": True, "against_version": "base"}
    registry.register("v1", folder, {"card.json": hash_file(folder / "card.json")}, evidence)
    return registry


def test_a_candidate_that_may_be_promoted_is_named_with_the_commands(tmp_path: Path):
    settings = Settings(training_root=tmp_path)
    registry = registered(settings, "approve")
    assert "registry sign-off v1" in closing(settings)
    registry.sign_off("v1", "Kim", "approve")
    assert "sign-off v1" not in closing(settings)
    assert "registry promote v1" in closing(settings)
    registry.promote("v1")
    assert "Production:  v1" in closing(settings)


def test_a_candidate_that_cannot_be_promoted_is_no_next_step(tmp_path: Path):
    settings = Settings(training_root=tmp_path)
    registered(settings, "inconclusive")
    assert "Next step" not in closing(settings)


def test_a_selection_whose_inputs_are_out_of_date_is_not_called_up_to_date(tmp_path: Path):
    lines = "\n".join(summary_lines(Settings(training_root=tmp_path), Outcome(upstream_left=["catalog"])))
    assert "out of date, but not selected: catalog." in lines
    assert "up to date;" not in lines
