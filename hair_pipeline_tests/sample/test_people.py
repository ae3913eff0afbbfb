"""Identities and people: balance, stability, and embeddings that tell people apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hair_pipeline import vocabulary
from hair_pipeline.sample.identity import embed, projection, sample_identities
from hair_pipeline.sample.people import FACING, FRONT, make_people, make_views


def test_a_person_does_not_depend_on_how_many_there_are() -> None:
    few, many = make_people(5, 3), make_people(17, 3)
    for a, b in zip(few, many, strict=False):
        assert replace(a, identity=None) == replace(b, identity=None)
        np.testing.assert_array_equal(a.identity, b.identity)
    assert make_people(1, 3, first=11)[0].source == many[11].source


def test_attributes_are_balanced() -> None:
    people = make_people(90, 0)
    assert len({p.source for p in people}) == 90
    curls = Counter(p.hair.curl_class for p in people)
    assert set(curls.values()) == {30}
    assert Counter(p.hair.has_bangs for p in people) == {True: 45, False: 45}
    assert {p.hair.length for p in people} == set(vocabulary.LENGTH.values())
    assert {p.hair.color for p in people} == set(vocabulary.COLOR.values())
    assert {p.hair.curl for p in people} == set(vocabulary.CURL.values())
    assert {p.hair.bangs for p in people} == set(vocabulary.BANGS.values())
    assert 0.2 <= np.mean([p.blurred for p in people]) <= 0.3


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 12))
def test_views_hold_a_front_a_three_quarter_and_a_back(seed: int, count: int) -> None:
    person = make_people(1, seed)[0]
    views = make_views(person, count)
    yaws = [abs(v.yaw) for v in views]
    assert yaws[0] <= 12
    assert 25 <= yaws[1] <= 45
    assert yaws[2] >= 160
    assert len({v.number for v in views}) == count
    assert all(0 <= v.horizontal < 360 and v.front == (abs(v.yaw) <= 20) for v in views)
    assert views[:3] == make_views(person, 3)


def test_frontal_views_stay_in_front() -> None:
    person = make_people(1, 0)[0]
    assert all(abs(v.yaw) <= 14 for v in make_views(person, 8, FRONT))


def test_views_for_faces_stay_within_45_degrees_on_both_sides() -> None:
    yaws = [v.yaw for person in make_people(8, 0) for v in make_views(person, 6, FACING)]
    assert all(abs(yaw) <= 45 for yaw in yaws)
    assert min(yaws) < -20
    assert max(yaws) > 20


def test_embeddings_tell_people_apart() -> None:
    identities = sample_identities(40, 0)
    assert np.abs(identities).max() <= 1
    rng = np.random.default_rng(0)
    first = np.stack([embed(i, "InsightFace", rng) for i in identities])
    second = np.stack([embed(i, "InsightFace", rng) for i in identities])
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    cosine = first @ second.T
    same, other = np.diag(cosine), cosine[~np.eye(40, dtype=bool)]
    assert same.min() > 0.8
    assert np.mean(other < 0.4) > 0.9
    assert other.max() < same.min()


def test_the_two_models_live_in_different_spaces() -> None:
    rng = np.random.default_rng(0)
    identities = sample_identities(20, 1)
    across = [float(embed(i, "InsightFace", rng) @ embed(i, "AdaFace", rng)) for i in identities]
    assert np.abs(across).max() < 0.4
    np.testing.assert_allclose(projection("AdaFace").T @ projection("AdaFace"), np.eye(identities.shape[1]), atol=1e-12)


def test_a_blurred_face_gives_an_embedding_of_the_smear() -> None:
    rng = np.random.default_rng(0)
    a, b = sample_identities(2, 2)
    smeared = [embed(i, "InsightFace", rng, blurred=True) for i in (a, b)]
    assert smeared[0] @ smeared[1] > 0.6
    assert smeared[0] @ embed(a, "InsightFace", rng) < 0.6


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(KeyError):
        projection("OtherFace")
