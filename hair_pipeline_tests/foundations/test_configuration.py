"""Profiles, environment and command line: wrong values are refused by name."""

import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from hair_pipeline.cli import app
from hair_pipeline.errors import PipelineError
from hair_pipeline.orchestration.schedules import build_schedules
from hair_pipeline.profile import PROFILE_NAMES, AutomationConfig, Profile, load_profile
from hair_pipeline.settings import PROJECT_ROOT, READ_FOLDERS, load_settings, require_folders, unknown_variables


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_every_profile_loads(name: str):
    assert load_profile(name).name == name


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("name: x\nstage1:\n  batch_sise: 4\n", "batch_sise"),
        ("name: x\nstage2:\n  precision: fp64\n", "precision"),
        ("name: x\ninputs:\n  validation_fraction: 1.5\n", "validation_fraction"),
        ("- a\n- b\n", "holds a list"),
        ("", "is empty"),
        ("name: x\nprocessing: {size: 0}\n", "processing.size"),
        ("name: x\nprocessing: {patches: {sizes: []}}\n", "sizes"),
        ("name: x\nprocessing: {patches: {sizes: [64, -1]}}\n", "sizes"),
        ("name: x\npatch_encoder: {width: 0}\n", "width"),
        ("name: x\npatch_encoder: {input_size: 60}\n", "input_size"),
        ("name: x\nclassifier: {resolution: 0}\n", "classifier.resolution"),
        ("name: x\nstage1: {resolution: 500}\n", "stage1.resolution"),
        ("name: x\nstage1: {learning_rate: .inf}\n", "learning_rate"),
        ("name: x\nevaluation: {steps: 0}\n", "evaluation.steps"),
        ("name: x\nevaluation: {batch_size: 0}\n", "evaluation.batch_size"),
        ("name: x\nab_test: {bootstrap_samples: 0}\n", "bootstrap_samples"),
        ("name: x\nab_test: {seed: -1}\n", "ab_test.seed"),
        ("name: x\nstage1: {seed: 100000000000000000000}\n", "stage1.seed"),
        ("name: x\nprocessing: {patches: {sizes: [64, 64]}}\n", "processing.patches"),
        ("name: [", "profile"),
        ("name: x\nmodels: {lora_rank: 8}\nstage1: {seed: 1}\nmodels: {perceptual: vgg}\n", "models stands twice"),
        ("name: x\nstage1:\n  losses: {pixel_every: 2}\n  epochs: 3\n  losses: {pixel_batch: 2}\n", "line 5"),
    ],
)
def test_a_wrong_profile_is_refused_by_file_and_field(tmp_path: Path, text: str, named: str):
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    with pytest.raises(PipelineError) as caught:
        load_profile(str(path))
    assert named in caught.value.message
    assert str(path) in caught.value.message


def test_a_profile_in_another_encoding_is_refused_by_file(tmp_path: Path):
    path = tmp_path / "profile.yaml"
    path.write_bytes("name: Größe\n".encode("latin-1"))
    with pytest.raises(PipelineError, match=r"profile\.yaml: is not UTF-8"):
        load_profile(str(path))


@pytest.mark.parametrize("cron", ["every sunday", "0 24 * * *"])
@pytest.mark.parametrize("name", ["retrain_cron", "observe_cron"])
def test_a_time_that_is_no_cron_is_refused_with_what_is(name: str, cron: str):
    profile = Profile(name="x", automation=AutomationConfig(**{name: cron}))
    with pytest.raises(PipelineError, match=name) as caught:
        build_schedules(profile)
    assert cron in caught.value.message


@pytest.mark.parametrize("cron", ["*/5 * * * *", "0 22 * * MON,wed", "@daily"])
def test_a_time_that_dagster_takes_is_taken(cron: str):
    _, weekly = build_schedules(Profile(name="x", automation=AutomationConfig(retrain_cron=cron)))
    assert weekly.cron_schedule == cron


def test_variables_that_nothing_reads_are_named_with_the_nearest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HAIR_PIPELINE_TRAINING_ROT", "1")
    monkeypatch.setenv("HAIR_PIPELINE_ERROR_FILE", "1")
    monkeypatch.setenv("HAIR_PIPELINE_XYZ", "1")
    said = unknown_variables()
    assert said.keys() == {"HAIR_PIPELINE_TRAINING_ROT", "HAIR_PIPELINE_XYZ"}
    assert "is HAIR_PIPELINE_TRAINING_ROOT meant?" in said["HAIR_PIPELINE_TRAINING_ROT"]


@pytest.mark.parametrize(
    ("variable", "value"), [("PROFILE", "rtx"), ("EXECUTOR", "slurm"), ("TORCHRUN_OPTIONS", '--nnodes "2')]
)
def test_a_wrong_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, variable: str, value: str):
    monkeypatch.setenv(f"HAIR_PIPELINE_{variable}", value)
    with pytest.raises(PipelineError, match=f"HAIR_PIPELINE_{variable}='{value}'"):
        load_settings()


def _command(*words: str, path: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    search = {"PYTHONPATH": f"{path}{os.pathsep}{PROJECT_ROOT}"} if path else {}
    return subprocess.run(
        [sys.executable, "-m", "hair_pipeline.cli", *words],
        env=os.environ | search | {f"HAIR_PIPELINE_{name}": value for name, value in variables.items()},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_an_error_is_one_message_with_the_path_as_it_is(tmp_path: Path):
    missing = tmp_path / "with [brackets]"
    done = _command("run", "--select", "catalog", K_HAIRSTYLE_ROOT=str(missing), TRAINING_ROOT=str(tmp_path / "out"))
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert str(missing) in done.stdout + done.stderr
    assert "HAIR_PIPELINE_K_HAIRSTYLE_ROOT" in done.stdout + done.stderr


def test_a_wrong_registry_version_is_an_error_without_a_traceback(tmp_path: Path):
    done = _command("registry", "show", "no [such] version", TRAINING_ROOT=str(tmp_path))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "no [such] version" in done.stderr


def test_a_selection_of_nothing_and_a_misspelt_variable_are_said_without_a_traceback(tmp_path: Path):
    done = _command("run", "--select", "group:procesed", TRAINING_ROOT=str(tmp_path), MODEL_DIR="/models")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "'group:procesed' selects nothing" in done.stderr
    assert "group:processed" in done.stderr
    assert "HAIR_PIPELINE_MODEL_DIR is no setting" in done.stderr


def test_a_missing_system_library_is_said_with_the_package_that_has_it(tmp_path: Path):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    assert _command("--version", path=tmp_path).returncode == 0
    done = _command("sample", "--out", str(tmp_path / "sample"), path=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "libGL.so.1" in done.stderr
    assert "apt-get install libgl1" in done.stderr


def test_a_grid_is_a_jpeg_and_named_so(tmp_path: Path):
    done = CliRunner().invoke(app, ["style-grid", "--out", str(tmp_path / "grid.gif")])
    assert isinstance(done.exception, PipelineError)
    assert "name it .jpg" in done.exception.message


def test_the_help_shows_what_stands_in_angle_brackets():
    shown = CliRunner().invoke(app, ["ab-test", "--help"], env={"COLUMNS": "200"}).output
    assert "<id>.jpg with training_face outputs" in shown
    assert "CUSTOMERS holds <id>.jpg" in shown


@pytest.mark.parametrize(
    "url", ["htps://chat.example/services/SECRET", "chat.example/services/SECRET", "http//[SECRET"]
)
def test_a_webhook_that_is_refused_keeps_its_secret(url, monkeypatch):
    monkeypatch.setenv("HAIR_PIPELINE_ALERT_WEBHOOK", url)
    with pytest.raises(PipelineError, match="HAIR_PIPELINE_ALERT_WEBHOOK=") as caught:
        load_settings()
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))
    assert ("htps://chat.example/..." in caught.value.message) == url.startswith("htps")


def _help_texts(command: click.Command) -> Iterator[str]:
    yield command.help or ""
    yield from (getattr(parameter, "help", None) or "" for parameter in command.params)
    for below in getattr(command, "commands", {}).values():
        yield from _help_texts(below)


def test_no_help_text_has_angle_brackets_that_markdown_would_swallow():
    texts = [re.sub("`[^`]*`", "", text) for text in _help_texts(get_command(app))]
    assert len(texts) > 50
    assert [text for text in texts if re.search("<[^>]*>", text)] == []


@pytest.mark.parametrize(
    "variable", [f"HAIR_PIPELINE_{name.upper()}" for name in READ_FOLDERS if name != "training_face_root"]
)
def test_a_folder_that_is_none_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
):
    monkeypatch.setenv("HAIR_PIPELINE_TRAINING_ROOT", str(tmp_path / "training"))
    monkeypatch.setenv(variable, str(tmp_path / "nowhere"))
    result = CliRunner().invoke(app, ["run"])
    assert isinstance(result.exception, PipelineError)
    assert variable in result.exception.message
    assert str(tmp_path / "nowhere") in result.exception.message
    assert not (tmp_path / "training").exists()


def test_folders_that_nobody_set_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in READ_FOLDERS:
        monkeypatch.delenv(f"HAIR_PIPELINE_{name.upper()}", raising=False)
    require_folders(load_settings())
