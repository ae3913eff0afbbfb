"""Weights from outside have the version of their content, wherever they lie, and are read again only when touched."""

import os
from pathlib import Path

import pytest

from hair_pipeline.models import outside
from hair_pipeline.models.outside import ABSENT, OUTSIDE, outside_version
from hair_pipeline.models.weights import base_source
from hair_pipeline.profile import ModelsConfig, Profile
from hair_pipeline.settings import Settings

PROFILE = Profile(name="real", models=ModelsConfig(base="sd", recogniser="face.onnx", perceptual="vgg"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for part in ("unet", "vae"):
        (tmp_path / "models/sd" / part).mkdir(parents=True)
        (tmp_path / "models/sd" / part / "model.safetensors").write_bytes(part.encode())
    for name in ("face.onnx", "lpips_vgg.safetensors"):
        (tmp_path / "models" / name).write_bytes(name.encode())
    return Settings(models_dir=tmp_path / "models", training_root=tmp_path / "training")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("inpainting_base", "sd/unet/model.safetensors"),
        ("face_recogniser", "face.onnx"),
        ("perceptual_trunk", "lpips_vgg.safetensors"),
    ],
)
def test_other_weights_under_the_same_name_are_another_version(settings: Settings, name: str, file: str) -> None:
    before = {each: outside_version(each, settings, PROFILE) for each in OUTSIDE}
    path = settings.models_dir / file
    path.write_bytes(path.read_bytes()[::-1])  # of the same size
    os.utime(path, ns=(1, 1))
    after = {each: outside_version(each, settings, PROFILE) for each in OUTSIDE}
    assert {each for each in OUTSIDE if before[each] != after[each]} == {name}


def test_what_is_as_it_was_is_not_read_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    before = outside_version("inpainting_base", settings, PROFILE)
    with monkeypatch.context() as changed:
        changed.setattr(outside, "hash_file", lambda path: pytest.fail(f"{path} was read"))
        assert outside_version("inpainting_base", settings, PROFILE) == before
    (settings.processed / "weights_cache/inpainting_base.json").write_text("[1]")
    assert outside_version("inpainting_base", settings, PROFILE) == before
    settings.models_dir.rename(settings.models_dir.with_name("moved"))
    moved = settings.model_copy(update={"models_dir": settings.models_dir.with_name("moved")})
    assert outside_version("inpainting_base", moved, PROFILE) == before


def test_missing_weights_and_those_on_the_hub_have_a_version_too(tmp_path: Path) -> None:
    settings = Settings(models_dir=tmp_path, training_root=tmp_path / "training")
    hub = PROFILE.model_copy(update={"models": ModelsConfig(base="someone/inpainting")})
    assert outside_version("inpainting_base", settings, hub) == "someone/inpainting"
    assert [outside_version(name, settings, PROFILE) for name in OUTSIDE] == [ABSENT] * 3


def test_weights_that_are_away_count_as_last_seen(settings: Settings) -> None:
    before = [outside_version(name, settings, PROFILE) for name in OUTSIDE]
    settings.models_dir.rename(settings.models_dir.with_name("away"))
    assert [outside_version(name, settings, PROFILE) for name in OUTSIDE] == before


def test_the_models_folder_comes_before_the_folder_that_the_command_runs_in(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here/sd/unet").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert base_source("sd", settings.models_dir) == (str(settings.models_dir / "sd"), True)
    assert base_source("sd", tmp_path / "none") == ("sd", True)
