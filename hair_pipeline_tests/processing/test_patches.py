"""Patches: wholly inside the mask, decided by image id and settings alone, spread, never flat."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hair_pipeline.processing.patches import cut_patches, shows_texture, windows_inside
from hair_pipeline.profile import PatchConfig
from hair_pipeline_tests.inputs.tiny_inputs import draw_person

SMALL = PatchConfig(sizes=(6, 4), per_image=5)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 254, (height, width, 3), dtype=np.uint8)


@given(st.tuples(st.integers(1, 30), st.integers(1, 30)).flatmap(lambda shape: arrays(bool, shape, fill=st.just(True))))
@settings(max_examples=200)
def test_patches_lie_wholly_inside_the_mask(mask: np.ndarray) -> None:
    image = noise(*mask.shape)
    for patch in cut_patches(image, mask, "a", SMALL):
        window = np.s_[patch.y : patch.y + patch.size, patch.x : patch.x + patch.size]
        assert mask[window].shape == (patch.size, patch.size)
        assert mask[window].all()
        np.testing.assert_array_equal(patch.image, image[window])


@given(arrays(bool, (12, 9)), st.integers(1, 13))
def test_windows_inside_is_exact(mask: np.ndarray, size: int) -> None:
    found = windows_inside(mask, size)
    for y in range(mask.shape[0] - size + 1):
        for x in range(mask.shape[1] - size + 1):
            assert found[y, x] == mask[y : y + size, x : x + size].all()


def test_the_same_image_gives_the_same_patches_and_another_others() -> None:
    image, mask = noise(100, 100), np.ones((100, 100), bool)

    def places(image_id: str, seed: int = 0) -> list[tuple[int, int, int]]:
        config = PatchConfig(sizes=(32, 16), per_image=4, seed=seed)
        return [(patch.size, patch.x, patch.y) for patch in cut_patches(image, mask, image_id, config)]

    assert places("a") == places("a")
    assert places("a") != places("b")
    assert places("a") != places("a", seed=1)


def test_patches_spread_over_the_hair() -> None:
    picture = draw_person(0, back=True)
    patches = [p for p in cut_patches(picture.photo, picture.hair_mask, "x", PatchConfig()) if p.size == 64]
    assert len(patches) >= 4
    for index, first in enumerate(patches):
        for second in patches[:index]:
            assert max(abs(first.x - second.x), abs(first.y - second.y)) >= 16
    rows = [patch.y for patch in patches]
    assert max(rows) - min(rows) > 64


def test_a_mask_too_narrow_gives_none() -> None:
    mask = np.zeros((200, 200), bool)
    mask[:, 80:140] = True
    assert cut_patches(noise(200, 200), mask, "x", PatchConfig()) == []
    assert cut_patches(noise(20, 20), np.ones((20, 20), bool), "x", PatchConfig()) == []


def test_flat_and_clipped_patches_are_left_out() -> None:
    assert not shows_texture(np.full((8, 8, 3), 90, np.uint8))
    assert not shows_texture(np.where(np.arange(64).reshape(8, 8, 1) < 50, 255, np.full(3, 90)).astype(np.uint8))
    assert shows_texture(noise(8, 8))
    assert cut_patches(np.full((100, 100, 3), 7, np.uint8), np.ones((100, 100), bool), "x", SMALL) == []
