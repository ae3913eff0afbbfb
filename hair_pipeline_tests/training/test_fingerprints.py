"""Versions follow content, wherever the content is found."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest

from hair_pipeline.errors import PipelineError
from hair_pipeline.models.base import load_base
from hair_pipeline.profile import ModelsConfig, Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.fingerprints import base_version, weights_version
from hair_pipeline_tests.models.inputs import save_base, tiny_base

HUB_ID = "someone/inpainting"
PROFILE = Profile(name="real", models=ModelsConfig(base=HUB_ID))


@pytest.mark.parametrize("place", ["inpainting", HUB_ID])
def test_a_base_in_the_models_folder_counts_by_its_content(tmp_path: Path, place: str) -> None:
    """It is loaded from there instead of from the hub, so its identity is what lies there."""
    settings = Settings(models_dir=tmp_path)
    save_base(tiny_base(), tmp_path / place)
    load_base(HUB_ID, tmp_path)
    before = base_version(settings, PROFILE), base_version(settings, PROFILE, "vae")
    assert before == (weights_version(tmp_path / place), weights_version(tmp_path / place / "vae"))
    save_base(tiny_base(seed=1), tmp_path / place)
    after = base_version(settings, PROFILE), base_version(settings, PROFILE, "vae")
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_a_base_on_the_hub_counts_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, and by the cached one."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    settings = Settings(models_dir=tmp_path)
    with pytest.raises(PipelineError, match="the base model cannot be loaded"):
        base_version(settings, PROFILE)
    cached = tmp_path / "cache" / "models--someone--inpainting"
    for commit in ("a" * 40, "b" * 40):
        save_base(tiny_base(), cached / "snapshots" / commit)
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / "main").write_text(commit)
        assert base_version(settings, PROFILE) == commit


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no weights"):
        weights_version(tmp_path / "nothing")
