"""Reports and verdicts go stale with everything that decides their numbers, and with nothing else."""

from pathlib import Path

import pandas as pd
import pytest

from hair_pipeline.evaluation.cases import ValidationPlan
from hair_pipeline.evaluation.contenders import resolve
from hair_pipeline.evaluation.fingerprints import current_model, drawn_by, measured_with
from hair_pipeline.evaluation.report import _fingerprint
from hair_pipeline.evaluation.styles import styles_version
from hair_pipeline.models.patch_encoder import PatchEncoder
from hair_pipeline_tests.evaluation.tiny_world import World, finish_run, make_world


@pytest.fixture(scope="module")
def own_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world of these tests' own: they change its files."""
    return make_world(tmp_path_factory.mktemp("stale"), people=2, customers=0)


def touch_content(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("part", "changed", "stale"),
    [
        ("processing", {"size": 64}, True),
        ("inputs", {"max_identity_yaw": 30.0}, True),
        ("inputs", {"min_face_confidence": 0.9}, True),
        ("evaluation", {"steps": 3}, True),
        ("evaluation", {"batch_size": 1}, False),
        ("inputs", {"shard_size": 7}, False),
        ("stage2", {"workers": 1}, False),
    ],
)
def test_settings_that_decide_the_numbers(world: World, part: str, changed: dict[str, float], stale: bool) -> None:
    other = world.profile.model_copy(update={part: getattr(world.profile, part).model_copy(update=changed)})
    assert (measured_with(world.settings, world.profile) != measured_with(world.settings, other)) == stale


def test_a_report_goes_stale_with_what_it_shows_and_not_with_what_is_drawn_at_once(world: World) -> None:
    plan = ValidationPlan(pd.DataFrame({"image_id": ["a"], "content_hash": ["b"]}), {}, {})

    def fingerprint(**changed: int) -> str:
        evaluation = world.profile.evaluation.model_copy(update=changed)
        return _fingerprint("v", plan, world.settings, world.profile.model_copy(update={"evaluation": evaluation}))

    assert fingerprint(batch_size=1) == fingerprint()
    assert len({fingerprint(), fingerprint(grid_rows=1), fingerprint(leakage_images=1)}) == 3


@pytest.mark.parametrize("judge", ["face_recogniser.onnx", "perceptual_alex.safetensors"])
def test_a_judge_with_other_weights_is_another_judge(own_world: World, judge: str) -> None:
    before = measured_with(own_world.settings, own_world.profile)
    assert measured_with(own_world.settings, own_world.profile) == before
    touch_content(own_world.settings.sample_models_dir / judge)
    assert measured_with(own_world.settings, own_world.profile) != before


def test_the_generation_size_is_part_of_a_model(world: World) -> None:
    stage2 = world.profile.stage2.model_copy(update={"resolution": 32})
    other = world.profile.model_copy(update={"stage2": stage2})
    for spec in ("untrained", "current"):
        versions = {drawn_by(resolve(spec, world.settings, p), world.settings, p) for p in (world.profile, other)}
        assert len(versions) == 2


def test_a_replaced_base_or_style_encoder_draws_otherwise(own_world: World) -> None:
    settings, profile = own_world.settings, own_world.profile
    untrained, model, styles = (
        resolve("untrained", settings, profile).version,
        current_model("v", settings, profile),
        styles_version(settings, profile),
    )
    touch_content(settings.sample_models_dir / "inpainting" / "scheduler" / "scheduler_config.json")
    assert resolve("untrained", settings, profile).version != untrained
    assert (based := current_model("v", settings, profile)) != model
    encoder = PatchEncoder("resnet", 8, 16, 16)
    finish_run("patch-encoder", settings, lambda folder: encoder.save(folder / "style_patch_encoder.pt"))
    assert styles_version(settings, profile) != styles
    assert current_model("v", settings, profile) != based
