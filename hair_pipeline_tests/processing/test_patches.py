"""Patches: wholly inside the mask, decided by image id and settings alone, spread, never flat."""

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hair_pipeline.processing.patches import cut, cut_patches, flaw_of, largest_window, windows_inside
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
    found = {tuple(corner) for corner in windows_inside(mask, size).tolist()}
    for y in range(mask.shape[0] - size + 1):
        for x in range(mask.shape[1] - size + 1):
            assert ((x, y) in found) == mask[y : y + size, x : x + size].all()


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)), fill=st.just(True)), st.integers(1, 5))
def test_the_largest_window_is_inside_and_none_is_larger(mask: np.ndarray, smallest: int) -> None:
    found = largest_window(mask, smallest)
    if found is None:
        assert not len(windows_inside(mask, smallest))
        return
    x, y, side = found
    assert side >= smallest
    assert mask[y : y + side, x : x + side].shape == (side, side)
    assert mask[y : y + side, x : x + side].all()
    assert not len(windows_inside(mask, side + 1))


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


def test_every_zone_gives_patches_in_its_place() -> None:
    image, mask = noise(300, 120), np.ones((300, 120), bool)
    patches = cut_patches(image, mask, "x", PatchConfig(sizes=(24,), per_image=9))
    assert [sum(patch.zone == zone for patch in patches) for zone in ("roots", "lengths", "ends")] == [3, 3, 3]
    for patch in patches:
        third = (patch.y + 12) / 100
        assert patch.zone == ("roots" if third < 1 else "lengths" if third < 2 else "ends")


def test_flat_clipped_and_blurred_patches_are_left_out() -> None:
    assert flaw_of(np.full((8, 8, 3), 90, np.uint8)) == "flat"
    clipped = np.where(np.arange(64).reshape(8, 8, 1) < 50, 255, np.full(3, 90)).astype(np.uint8)
    assert flaw_of(clipped) == "clipped"
    hair = draw_person(0, back=True).photo[150:278, 200:328]
    assert flaw_of(hair) is None
    assert flaw_of(cv2.GaussianBlur(noise(128, 128), (0, 0), 2.5)) == "blurred"
    found = cut(np.full((100, 100, 3), 7, np.uint8), np.ones((100, 100), bool), "x", SMALL)
    assert found.patches == []
    assert found.without == {6: "only_flawed", 4: "only_flawed"}
    assert cut(noise(9, 9), np.zeros((9, 9), bool), "x", SMALL).without == {6: "no_window", 4: "no_window"}


def test_a_single_window_off_the_grid_is_found() -> None:
    mask = np.zeros((90, 90), bool)
    mask[13:77, 7:71] = True
    patches = cut_patches(noise(90, 90), mask, "x", PatchConfig(sizes=(64,)))
    assert [(patch.x, patch.y) for patch in patches] == [(7, 13)]
