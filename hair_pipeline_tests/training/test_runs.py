"""Which run a command goes on with: the same one, a new one, or none because something changed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import SafetensorError
from typer.testing import CliRunner

from hair_pipeline import cli
from hair_pipeline.errors import PipelineError, TransientError
from hair_pipeline.files import write_json
from hair_pipeline.profile import Profile, load_profile
from hair_pipeline.settings import Settings
from hair_pipeline.training import loop
from hair_pipeline.training.context import Context
from hair_pipeline.training.entry import _record_people, train
from hair_pipeline.training.loop import LoopResult
from hair_pipeline.training.people import people_to_train_on
from hair_pipeline.training.runs import RunPlan, differences, fresh_folder, trainers_at_work
from hair_pipeline.training.stages import StageTask
from hair_pipeline.training.task import LoopConfig, Task
from hair_pipeline.training.trainers import patch_encoder
from hair_pipeline_tests.training.tiny_training import Trained, tiny_profile

NAME = "patch-encoder"


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    def plan(identity: str) -> RunPlan:
        return RunPlan(NAME, "tiny", {}, {}, "", identity, tmp_path, tmp_path / "runs" / NAME)

    taken = pytest.raises(TransientError, match="another process is training this run")
    with plan("a").held(), plan("b").held(), taken, plan("a").held():
        pass
    with plan("a").held():
        assert trainers_at_work(Settings(training_root=tmp_path)) == [NAME]
    assert trainers_at_work(Settings(training_root=tmp_path)) == []


@pytest.fixture
def settings(trained: Trained, tmp_path: Path) -> Settings:
    """The fixture's patches and catalog, and no run yet."""
    root = tmp_path / "training"
    shutil.copytree(trained.settings.processed, root / "processed")
    return trained.settings.model_copy(update={"training_root": root})


def profile(**changes: object) -> Profile:
    values = tiny_profile().model_dump()
    values["patch_encoder"] |= {"steps": 6, "learning_rate": 1e-3} | changes
    return Profile.model_validate(values)


@pytest.fixture
def interrupted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A run of `profile()` that was stopped after three of six steps."""

    def stop(own: Context, task: Task, config: LoopConfig) -> LoopResult:
        config = dataclasses.replace(config, checkpoint_every=3)
        with monkeypatch.context() as patch:
            real = loop._count_bad

            def count(*arguments: object, **named: object) -> None:
                real(*arguments, **named)  # type: ignore[arg-type]
                if arguments[2] == 3:
                    raise KeyboardInterrupt

            patch.setattr(loop, "_count_bad", count)
            return original(own, task, config)

    original = Context.loop
    monkeypatch.setattr(Context, "loop", stop)
    with pytest.raises(KeyboardInterrupt):
        train(NAME, settings, profile())
    monkeypatch.setattr(Context, "loop", original)
    return settings


def run_folders(settings: Settings) -> list[Path]:
    return [path for path in (settings.runs / NAME).iterdir() if path.is_dir()]


def first_step(settings: Settings, run_id: str) -> list[int]:
    lines = (settings.runs / NAME / run_id / "patch-encoder" / "losses.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_the_same_goes_on(interrupted: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    result = train(NAME, interrupted, profile(), resume=True)
    assert "going on from step 3" in caplog.text
    assert len(run_folders(interrupted)) == 1
    assert first_step(interrupted, result.run_id) == list(range(6))
    assert not (interrupted.runs / NAME / "unfinished.json").exists()


def test_values_that_change_no_result_are_not_a_change(interrupted: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    train(NAME, interrupted, profile(workers=1), resume=True)
    assert "going on from step 3" in caplog.text


def test_a_changed_configuration_is_refused_with_the_difference(interrupted: Settings) -> None:
    with pytest.raises(PipelineError) as caught:
        train(NAME, interrupted, profile(learning_rate=0.01), resume=True)
    assert "patch_encoder.learning_rate: 0.001 -> 0.01" in caught.value.message
    assert "--resume --force" in caught.value.message
    assert len(run_folders(interrupted)) == 1


def test_changed_data_is_refused_with_the_difference(interrupted: Settings) -> None:
    manifest = next((interrupted.processed / "hair_patches").glob("*.json"))
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(values | {"data_version": "other"}))
    with pytest.raises(PipelineError, match=r"data\.hair_patches: [0-9a-f]+ -> [0-9a-f]+"):
        train(NAME, interrupted, profile(), resume=True)


def test_force_goes_on_and_says_so_in_the_result(interrupted: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    result = train(NAME, interrupted, profile(learning_rate=0.01), resume=True, force=True)
    assert "going on from step 3" in caplog.text
    assert "learning_rate: 0.001 -> 0.01" in result.notes["resumed"]
    assert len(run_folders(interrupted)) == 2  # the old run is left as it was
    assert first_step(interrupted, result.run_id) == list(range(6))


def test_a_forced_run_that_is_stopped_too_still_says_so(interrupted: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = profile(learning_rate=0.01)
    with monkeypatch.context() as patch:
        patch.setattr(Context, "loop", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(NAME, interrupted, changed, resume=True, force=True)
    assert "learning_rate: 0.001 -> 0.01" in train(NAME, interrupted, changed).notes["resumed"]


def test_a_forced_run_names_those_too_whom_the_run_before_it_was_trained_on(interrupted: Settings) -> None:
    rows = pd.read_parquet(interrupted.catalog_path)
    gone = rows[rows.accepted & (rows.split == "train")].source.iloc[0]
    rows[rows.source != gone].to_parquet(interrupted.catalog_path)
    result = train(NAME, interrupted, profile(), resume=True, force=True)
    assert gone in json.loads((result.run_dir / "people.json").read_text())["people"]


@pytest.mark.parametrize("earlier", ["stage1", "patch-encoder", "style-classifier"])
def test_stage_2_names_those_too_whom_the_runs_it_builds_on_were_trained_on(settings: Settings, earlier: str) -> None:
    before, stage2 = (
        RunPlan(stage, "tiny", {}, {}, "", "a", settings.training_root, settings.runs / stage)
        for stage in (earlier, "stage2")
    )
    before.finish("v1", {}, [], {}).save(before.folder / "current.json", settings.training_root)
    write_json(before.run_dir / "people.json", {"people": ["gone"]})
    _record_people(stage2, settings)
    people = json.loads((stage2.run_dir / "people.json").read_text())["people"]
    assert set(people) == {"gone", *people_to_train_on(settings)}


def stopped(*_: object) -> LoopResult:
    raise KeyboardInterrupt


def test_without_resume_a_change_begins_a_new_run_and_shows_the_difference(
    interrupted: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    train(NAME, interrupted, profile(learning_rate=0.01))
    assert "is left aside" in caplog.text
    assert "patch_encoder.learning_rate: 0.001 -> 0.01" in caplog.text
    assert len(run_folders(interrupted)) == 2


def test_nothing_to_go_on_from_is_said(interrupted: Settings, caplog: pytest.LogCaptureFixture) -> None:
    train(NAME, interrupted, profile(), resume=True)
    assert "from the start" not in caplog.text
    train(NAME, interrupted, profile(learning_rate=0.01), resume=True)
    assert "no unfinished run to go on from; this is a new run, from the start" in caplog.text


def test_no_resume_starts_over(interrupted: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    train(NAME, interrupted, profile(), resume=False)
    assert "going on" not in caplog.text


def test_force_alone_is_refused(settings: Settings) -> None:
    with pytest.raises(PipelineError, match="only has a meaning with --resume"):
        train(NAME, settings, profile(), force=True)


def test_the_command_refuses_too(interrupted: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted.models_dir.mkdir(exist_ok=True)
    monkeypatch.setattr(cli, "load_settings", lambda: interrupted)
    result = CliRunner().invoke(cli.app, ["train", NAME, "--resume"])
    assert isinstance(result.exception, PipelineError)
    assert f"patch_encoder.steps: 6 -> {load_profile('sample').patch_encoder.steps}" in result.exception.message


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda rows: rows.assign(split="validation"), r"in the train split \(all are held out\)"),
        (lambda rows: rows.assign(accepted=False), "none of the 8 images is accepted"),
    ],
)
@pytest.mark.parametrize("name", ["patch-encoder", "style-classifier", "stage1", "stage2"])
def test_nothing_to_train_on_is_refused_before_anything_is_loaded(
    settings: Settings, name: str, change: object, what: str
) -> None:
    rows = pd.read_parquet(settings.catalog_path)
    change(rows).to_parquet(settings.catalog_path)  # type: ignore[operator]
    with pytest.raises(PipelineError, match=what):
        train(name, settings, profile())


def test_out_of_memory_keeps_the_run_and_says_what_to_do(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(patch_encoder.PatchTask, "losses", full)
    with pytest.raises(PipelineError, match=r"out of memory \(CUDA out of memory(.|\n)*lower the batch size"):
        train(NAME, settings, profile())


@pytest.mark.parametrize(("others", "kind"), [(20, TransientError), (1, PipelineError)])
def test_a_stage_that_runs_out_of_memory_says_whose_fault_it_is(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int, kind: type[PipelineError]
) -> None:
    shutil.copytree(trained.settings.training_root, tmp_path / "training")
    own = trained.settings.model_copy(update={"training_root": tmp_path / "training"})
    changed = trained.profile.stage2.model_copy(update={"seed": 1, "batch_size": 2})

    def full(*_: object) -> None:
        """A card of 24 GiB, of which other programs hold some."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: ((24 - others) << 30, 24 << 30))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(StageTask, "losses", full)
    with pytest.raises(PipelineError, match="out of memory at batch_size 2") as caught:
        train("stage2", own, trained.profile.model_copy(update={"stage2": changed}))
    assert type(caught.value) is kind
    assert "batch_size: 1 with gradient_accumulation_steps" in caught.value.message


def test_the_run_keeps_configuration_data_versions_and_environment(trained: Trained) -> None:
    folder = trained.results["stage2"].run_dir
    config = json.loads((folder / "config.json").read_text())
    assert config["stage2"]["learning_rate"] == trained.profile.stage2.learning_rate
    assert {"catalog", "latents", "style_vectors", "identity_embeddings", "base", "stage1"} <= config["data"].keys()
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["processes"] == 1
    assert {"git_commit", "git_changes", "gpus", "packages", "python"} <= environment.keys()


def test_differences_name_every_value() -> None:
    old = {"a": {"b": 1, "c": {"d": 2}}, "workers": 1, "gone": 3}
    new = {"a": {"b": 1, "c": {"d": 4}}, "workers": 2, "new": None}
    assert differences(old, new) == ["a.c.d: 2 -> 4", "gone: 3 -> absent", "new: absent -> None"]


def test_a_disk_full_of_weights_is_one_message_and_the_old_ones_stay(tmp_path: Path) -> None:
    final = tmp_path / "final"
    final.mkdir()
    with pytest.raises(PipelineError, match=r"cannot be written .*No space left"), fresh_folder(final):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError, match="header"), fresh_folder(final):
        raise SafetensorError("invalid header")
    assert list(tmp_path.iterdir()) == [final]
