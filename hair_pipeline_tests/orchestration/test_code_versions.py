"""Code versions follow the profile: an asset is stale when, and only when, a value that concerns it changed."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from pydantic import BaseModel

from hair_pipeline.evaluation.fingerprints import READING
from hair_pipeline.orchestration.code_versions import CONCERNS, with_profile
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training import entry, latents
from hair_pipeline.training.runs import RunPlan

PROFILE = Profile(name="any")


def changes(values: BaseModel, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every single value."""
    for name in type(values).model_fields:
        value = getattr(values, name)
        if isinstance(value, BaseModel):
            yield from changes(value, (*path, name))
        else:
            yield (*path, name)


def changed(values: BaseModel, path: tuple[str, ...]) -> BaseModel:
    """The same values but for one."""
    value = getattr(values, path[0])
    if len(path) > 1:
        return values.model_copy(update={path[0]: changed(value, path[1:])})
    other = {bool: lambda: not value, int: lambda: value + 8, float: lambda: value + 0.01}.get(type(value))
    return values.model_copy(update={path[0]: other() if other else "another"})


def version(asset: str, profile: Profile) -> str | None:
    return with_profile(dg.AssetSpec(asset, code_version="1"), profile).code_version


@pytest.mark.filterwarnings("ignore:Pydantic serializer")
def test_latents_become_stale_with_every_value_that_enters_their_fingerprint(monkeypatch):
    rows = pd.DataFrame({"image_id": [], "source": [], "split": [], "stage2": [], "content_hash": []})
    monkeypatch.setattr(latents, "read_catalog", lambda *_: rows)
    settings = Settings(training_root=Path("nowhere"))

    def fingerprint(profile: Profile) -> str:
        return latents._fingerprint("shard_0000", settings, profile, f"vae of {profile.models.base}")

    entering = [path for path in changes(PROFILE) if fingerprint(changed(PROFILE, path)) != fingerprint(PROFILE)]
    assert ("stage1", "patch_resolution") in entering
    for path in entering:
        assert version("latents", changed(PROFILE, path)) != version("latents", PROFILE), ".".join(path)


def test_the_style_classifier_becomes_stale_with_the_base_that_its_training_names():
    other = changed(PROFILE, ("models", "base"))
    assert version("style_classifier", other) != version("style_classifier", PROFILE)


@pytest.mark.filterwarnings("ignore:Pydantic serializer")
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_who_judges_in_the_evaluation_alone_makes_no_stage_stale_and_no_other_run(stage: str):
    sections = entry._TRAINERS[stage].sections

    def run(profile: Profile) -> str:
        return RunPlan.make(stage, sections, Settings(training_root=Path("nowhere")), profile, {}, "1").run_id

    asset, models = f"{stage}_checkpoint", [path for path in changes(PROFILE) if path[0] == "models"]
    assert {path for path in models if version(asset, changed(PROFILE, path)) != version(asset, PROFILE)} == {
        path for path in models if run(changed(PROFILE, path)) != run(PROFILE)
    }
    free = {path[1] for path in models if run(changed(PROFILE, path)) == run(PROFILE)}
    assert free == {"evaluation_recogniser", "inception", "clip"} | ({"recogniser"} if stage == "stage1" else set())


@pytest.mark.filterwarnings("ignore:Pydantic serializer")
@pytest.mark.parametrize(
    ("asset", "section"),
    [
        ("patch_encoder", "patch_encoder"),
        ("style_classifier", "classifier"),
        ("stage1_checkpoint", "stage1"),
        ("stage2_checkpoint", "stage2"),
    ],
)
def test_a_trained_asset_becomes_stale_with_the_values_that_give_another_run_and_no_others(asset: str, section: str):
    def run(profile: Profile) -> str:
        return RunPlan.make(asset, (section,), Settings(training_root=Path("nowhere")), profile, {}, "1").run_id

    others = {path: changed(PROFILE, path) for path in changes(PROFILE) if path[0] == section}
    stale = {path for path, profile in others.items() if version(asset, profile) != version(asset, PROFILE)}
    assert (section, "workers") not in stale
    assert stale == {path for path, profile in others.items() if run(profile) != run(PROFILE)}


@pytest.mark.parametrize(
    ("asset", "without_effect"),
    [("eval_report", {"batch_size"}), ("ab_verdict", {"batch_size", "grid_rows", "leakage_images"})],
)
def test_the_evaluation_becomes_stale_with_every_value_that_its_pages_depend_on(asset: str, without_effect: set[str]):
    paths = [path for path in changes(PROFILE) if path[0] == "evaluation"]
    assert without_effect < {path[1] for path in paths}
    fresh = {path[1] for path in paths if version(asset, changed(PROFILE, path)) == version(asset, PROFILE)}
    assert fresh == without_effect


@pytest.mark.parametrize("name", sorted(READING))
def test_the_verdict_becomes_stale_with_how_customers_faces_are_read(name: str):
    assert version("ab_verdict", changed(PROFILE, ("inputs", name))) != version("ab_verdict", PROFILE)


def test_what_concerns_an_asset_exists_in_the_profile():
    paths = {".".join(path[:depth]) for path in changes(PROFILE) for depth in range(1, len(path) + 1)}
    assert {name for names in CONCERNS.values() for name in names} <= paths
