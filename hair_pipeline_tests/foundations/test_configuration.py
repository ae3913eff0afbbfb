"""Profiles, environment and command line: wrong values are refused by name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hair_pipeline.errors import PipelineError
from hair_pipeline.profile import PROFILE_NAMES, load_profile
from hair_pipeline.settings import load_settings


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_every_profile_loads(name: str):
    assert load_profile(name).name == name


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("name: x\nstage1:\n  batch_sise: 4\n", "batch_sise"),
        ("name: x\nstage2:\n  precision: fp64\n", "precision"),
        ("name: x\ninputs:\n  validation_fraction: 1.5\n", "validation_fraction"),
        ("- a\n- b\n", "profile"),
        ("name: [", "profile"),
    ],
)
def test_a_wrong_profile_is_refused_by_file_and_field(tmp_path: Path, text: str, named: str):
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    with pytest.raises(PipelineError) as caught:
        load_profile(str(path))
    assert named in caught.value.message
    assert str(path) in caught.value.message


@pytest.mark.parametrize(("variable", "value"), [("PROFILE", "rtx"), ("EXECUTOR", "slurm")])
def test_a_wrong_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, variable: str, value: str):
    monkeypatch.setenv(f"HAIR_PIPELINE_{variable}", value)
    with pytest.raises(PipelineError, match=f"HAIR_PIPELINE_{variable}='{value}'"):
        load_settings()


def _command(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hair_pipeline.cli", *words],
        env=os.environ | {f"HAIR_PIPELINE_{name}": value for name, value in variables.items()},
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
