"""Whom a model is compared with that is in production itself."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hair_pipeline.evaluation.contenders import opponent
from hair_pipeline.profile import AbTestConfig, Profile
from hair_pipeline.settings import Settings
from hair_pipeline_tests.release.tiny_registry import signed


def test_a_model_in_production_is_compared_with_the_last_version_before_it_that_is_still_there(tmp_path: Path) -> None:
    settings = Settings(training_root=tmp_path)
    profile = Profile(name="test", ab_test=AbTestConfig(first_opponent="pictures of another system"))

    def compared(version: str) -> str:
        new: Any = SimpleNamespace(version=version)
        return opponent(new, settings, profile)

    registry = signed(tmp_path, "a")
    registry.promote("a")
    assert compared("b") == "production"
    assert compared("a") == "pictures of another system"
    for version in ("b", "c"):
        signed(tmp_path, version).promote(version)
    assert compared("c") == "b"
    versions = tmp_path / "checkpoints" / "versions"
    shutil.rmtree(versions / "b")  # erased with the photos of somebody it was trained on
    assert compared("c") == "a"
    shutil.rmtree(versions / "a")
    assert compared("c") == "pictures of another system"
