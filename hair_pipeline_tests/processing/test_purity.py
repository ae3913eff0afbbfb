"""Patches cut again from their photos."""

import cv2
import pytest

from hair_pipeline.inputs.catalog import build_catalog
from hair_pipeline.orchestration.checks import MAX_PATCH_DIFFERENCE
from hair_pipeline.processing.purity import measure_purity
from hair_pipeline.processing.shards import cut_hair_patches
from hair_pipeline.profile import Profile
from hair_pipeline_tests.inputs.tiny_inputs import write_tiny_inputs


@pytest.fixture
def made(tmp_path):
    inputs = write_tiny_inputs(tmp_path, people=2, views=1, size=512)
    settings, profile = inputs.settings(), Profile(name="test", inputs={"validation_fraction": 0.5})
    build_catalog(settings, profile)
    cut_hair_patches("shard_0000", settings, profile)
    return inputs, settings


def test_patches_just_cut_are_pure(made):
    found = measure_purity(made[1])
    assert len(found.share) > 8
    assert min(found.share) == 1.0
    assert max(found.difference) < MAX_PATCH_DIFFERENCE
    assert found.unreadable == []


def test_another_photo_in_the_place_of_theirs_is_noticed(made):
    inputs, settings = made
    for path in inputs.k_hairstyle.rglob("*.jpg"):
        cv2.imwrite(str(path), cv2.imread(str(path))[:, ::-1] // 2)
    assert max(measure_purity(settings).difference) > MAX_PATCH_DIFFERENCE


def test_photos_that_are_gone_are_named_and_the_rest_measured(made):
    inputs, settings = made
    gone = next(inputs.k_hairstyle.rglob("*.jpg"))
    gone.unlink()
    found = measure_purity(settings)
    assert found.unreadable == [gone.stem]
    assert found.share
