"""The recipe of data/sample_models for a handful of steps: it runs, resumes and leaves what stock loaders read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hair_pipeline.profile import Profile
from hair_pipeline.sample.recipe import Rendering, recipe_profile
from hair_pipeline.training.sample_models import train_sample_models
from hair_pipeline_tests.models.bundle import check_bundle


def brief(profile: Profile) -> Profile:
    few = {"steps": 2, "batch_size": 4, "learning_rate": 1e-3}
    values = profile.model_dump()
    values["inputs"]["validation_fraction"] = 0.3
    values["base_training"] |= {"resolution": 64, "vae": few, "unet": few, "recogniser": few, "perceptual": few}
    values["classifier"] |= {"resolution": 64, "width": 4, "steps": 2, "batch_size": 4}
    values["patch_encoder"] |= {"width": 8, "steps": 2, "people_per_batch": 2, "patches_per_person": 2}
    return Profile.model_validate(values)


@pytest.mark.slow
def test_the_recipe_runs_and_goes_on(tmp_path: Path) -> None:
    out, work = tmp_path / "bundle", tmp_path / "work"
    few = {"people": Rendering(4, 2, 7), "faces": Rendering(5, 2, 8), "triplets": 1}
    card = train_sample_models(out, work, brief(recipe_profile()), **few)  # type: ignore[arg-type]
    check_bundle(out)
    assert card == json.loads((out / "card.json").read_text())
    assert {"psnr", "hair_psnr"} <= card["quality"]["inpainting-vae"].keys()
    assert {"triplets_blur", "triplets_noise", "triplets_curl"} <= card["quality"]["perceptual-trunk"].keys()
    assert card["settings"]["base_training"]["vae"]["steps"] == 2

    again = train_sample_models(out, work, brief(recipe_profile()), **few)  # type: ignore[arg-type]
    assert again["files"] == card["files"]  # every training was finished and is reused
    assert again["training_seconds"] == card["training_seconds"]
