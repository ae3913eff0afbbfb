"""The split by person: disjoint, stable when people come, about the fraction asked for, never an empty side."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hair_pipeline.inputs.people import names_of
from hair_pipeline.inputs.split import assign_splits, position

PEOPLE = st.dictionaries(st.integers(0, 5000).map("CP{:06d}".format), st.integers(0, 2), max_size=40)


@given(PEOPLE, st.floats(0.01, 0.9), st.integers(0, 5))
def test_both_sides_have_someone_useful(people: dict[str, int], fraction: float, seed: int) -> None:
    splits = assign_splits(people, fraction, seed)
    assert set(splits) == set(people)
    if len(people) < 2:
        return
    best = max(level for level in (0, 1, 2) if sum(rank >= level for rank in people.values()) >= 2)
    for side in ("train", "validation"):
        assert any(splits[source] == side and rank >= best for source, rank in people.items())


@given(PEOPLE, PEOPLE, st.integers(0, 3))
def test_people_who_come_move_nobody(people: dict[str, int], newcomers: dict[str, int], seed: int) -> None:
    before = assign_splits(people, 0.05, seed)
    if len(people) < 2:
        return
    after = assign_splits(newcomers | people, 0.05, seed, before)
    assert all(after[source] == before[source] for source in people)


def test_the_fraction_is_kept_without_any_record() -> None:
    people = {f"CP{number:06d}": 2 for number in range(20_000)}
    splits = assign_splits(people, 0.05, 0)
    share = sum(side == "validation" for side in splits.values()) / len(people)
    assert 0.045 < share < 0.055
    grown = assign_splits(people | {f"DS{number:06d}": 2 for number in range(5_000)}, 0.05, 0)
    assert all(grown[source] == side for source, side in splits.items())


def test_another_seed_holds_out_other_people() -> None:
    assert position("CP000001", 0) != position("CP000001", 1)


def test_the_case_of_a_name_says_nothing() -> None:
    assert position("CP000001", 0) == position("cp000001", 0)
    assert f"{position('CP000001', 0):.12f}" == "0.076439288173"


def test_the_only_useful_person_is_trained_on() -> None:
    for fraction in (0.01, 0.5, 0.99):
        splits = assign_splits({"a": 1, "b": 0, "c": 0}, fraction, 0)
        assert splits["a"] == "train"
        assert "validation" in splits.values()


@pytest.mark.parametrize("order", list(permutations((("CP1", "cp2"), ("CP2", "CP3"), ("DS9", "CP1")))))
def test_a_person_of_several_names_is_one_in_whatever_order_they_are_told(order: tuple[tuple[str, str], ...]) -> None:
    names = names_of(["CP1", "CP2", "CP3", "CP4"], (), dict(order))
    assert {names[source] for source in ("CP1", "CP2", "CP3")} == {"CP3"}
    assert names["CP4"] == "CP4"
