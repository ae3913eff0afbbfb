"""Polygons: all forms give the same rings, anything else is `BadPolygon`, and masks are drawn where they belong."""

import json
import time

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hair_pipeline.inputs.polygons import MAX_RINGS, BadPolygon, draw_polygon, parse_polygon, polygon_scale
from hair_pipeline_tests.inputs.tiny_inputs import draw_person, polygon

SQUARE = [[10, 10], [30, 10], [30, 40], [10, 40]]
DICTS = [{"x": x, "y": y} for x, y in SQUARE]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=20,
)


@pytest.mark.parametrize(
    "form",
    [[DICTS], DICTS, [SQUARE], SQUARE, json.dumps([DICTS]), json.dumps(DICTS), json.dumps(json.dumps([DICTS])),
     [[{"x": str(x), "y": str(y)} for x, y in SQUARE]]],
)  # fmt: skip
def test_every_form_gives_the_same_rings(form: object) -> None:
    ((ring,), short) = parse_polygon(form)
    assert short == 0
    np.testing.assert_array_equal(ring, np.float32(SQUARE))


@pytest.mark.parametrize("empty", [None, "", "[]", [], "[[]]", [[]], "nan", "none", float("nan"), "null"])
def test_every_form_of_nothing(empty: object) -> None:
    assert parse_polygon(empty) == ([], 0)


def test_rings_that_enclose_nothing_are_counted() -> None:
    rings, short = parse_polygon([SQUARE[:2], SQUARE, SQUARE[:1], []])
    assert (len(rings), short) == (1, 2)


@given(JSON_VALUES | st.text(max_size=40))
def test_anything_else_is_a_bad_polygon(value: object) -> None:
    try:
        rings = parse_polygon(value).rings
    except BadPolygon:
        return
    for ring in rings:
        assert ring.shape[1] == 2
        assert len(ring) >= 3
        assert np.isfinite(ring).all()
        assert draw_polygon([ring], 16, 12).shape == (12, 16)


@given(st.lists(st.tuples(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30)), min_size=3, max_size=8))
def test_wild_coordinates_are_drawn_without_error(points: list[tuple[float, float]]) -> None:
    assert draw_polygon([np.array(points, np.float32)], 20, 10, (2.0, 0.5)).shape == (10, 20)


def test_a_mask_survives_the_way_through_its_polygon() -> None:
    mask = draw_person(0, size=256).hair_mask
    drawn = draw_polygon(parse_polygon(json.dumps(polygon(mask))).rings, 256, 256)
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.97


def test_a_ring_inside_is_a_hole_and_rings_beside_are_united() -> None:
    outer, inner, other = ([[a, a], [b, a], [b, b], [a, b]] for a, b in ((5, 45), (15, 30), (40, 60)))
    mask = draw_polygon(parse_polygon([inner, outer, other]).rings, 64, 64)
    assert mask[10, 10]
    assert not mask[20, 20]
    assert mask[42, 42]
    assert mask[55, 55]


def test_a_ring_that_comes_twice_is_no_hole() -> None:
    outer, hole = ([[a, a], [b, a], [b, b], [a, b]] for a, b in ((5, 55), (15, 30)))
    shifted = [[x + 0.5, y - 0.5] for x, y in outer]
    expected = draw_polygon(parse_polygon([outer, hole]).rings, 64, 64)
    assert expected[10, 10]
    assert not expected[20, 20]
    for rings in ([outer, outer, hole], [outer, hole, hole], [outer, hole, outer[::-1], hole[::-1]]):
        np.testing.assert_array_equal(draw_polygon(parse_polygon(rings).rings, 64, 64), expected)
    drawn = draw_polygon(parse_polygon([outer, shifted, hole]).rings, 64, 64)
    assert (drawn ^ expected).mean() < 0.04


def test_a_ring_as_large_as_another_elsewhere_is_a_hole() -> None:
    outer, other, hole = ([[a, 5], [b, 5], [b, c], [a, c]] for a, b, c in ((0, 40, 60), (44, 60, 25), (10, 26, 24.5)))
    mask = draw_polygon(parse_polygon([outer, other, hole]).rings, 64, 64)
    assert mask[15, 50]
    assert not mask[15, 18]


def drawn_at_full_size(rings: list[np.ndarray], width: int, height: int) -> np.ndarray:
    """Rings none of which retraces another, each drawn over the whole mask and a column more."""
    mask = np.zeros((height, width), np.uint8)
    for ring in sorted(rings, key=lambda ring: -cv2.contourArea(ring)):
        part = np.zeros((height, width + 1), np.uint8)
        cv2.fillPoly(part, [np.round(ring * 8).astype(np.int32)], 1, shift=3)
        inside = part[:, :-1] > 0
        mask[inside] = not mask[inside].all()
    return mask.view(bool)


def test_what_lies_beyond_the_right_border_is_not_drawn_at_it() -> None:
    ring = np.float32([(-6, 48), (103, 118), (27, 36)])
    column = np.flatnonzero(draw_polygon([ring], 28, 100)[:, -1])
    assert column[0] == pytest.approx(36, abs=1)
    assert column[-1] == pytest.approx(48 + 70 / 109 * 33, abs=1)


@pytest.mark.parametrize("seed", range(20))
def test_a_ring_drawn_where_it_lies_has_the_same_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rings = [
        np.float32(rng.uniform(-30, 130, 2) + rng.normal(0, 80 / number**2, (rng.integers(3, 9), 2)))
        for number in range(1, 6)
    ]
    np.testing.assert_array_equal(draw_polygon(rings, 110, 90), drawn_at_full_size(rings, 110, 90))


def test_many_rings_take_no_time_and_too_many_are_refused() -> None:
    corners = np.random.default_rng(0).uniform(20, 4000, (MAX_RINGS, 2))
    rings = [[[x, y], [x + 8, y], [x, y + 8]] for x, y in corners.tolist()]
    started = time.perf_counter()
    draw_polygon(parse_polygon(rings).rings, 4032, 4032)
    assert time.perf_counter() - started < 2
    with pytest.raises(BadPolygon, match="more than 500 rings"):
        parse_polygon([*rings, rings[0]])


def test_scale() -> None:
    assert polygon_scale((256, None), 128, 128) == (0.5, 0.5)
    assert polygon_scale((0, 800), 300, 400) == (0.5, 0.5)
    assert polygon_scale((300, None), 400, 300) == (1, 1)
    assert polygon_scale((1024, 1024), 512, 512) == (0.5, 0.5)
    assert polygon_scale((None, 0), 512, 512) == (1, 1)
    assert polygon_scale((300, 400), 400, 300) == (1, 1)
    full = draw_polygon([np.float32(SQUARE)], 64, 64)
    half = draw_polygon([np.float32(SQUARE) * 2], 64, 64, polygon_scale((128, 128), 64, 64))
    np.testing.assert_array_equal(full, half)
