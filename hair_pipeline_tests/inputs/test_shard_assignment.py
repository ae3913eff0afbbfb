"""Shards: whole people, append-only, about the size asked for."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hair_pipeline.errors import PipelineError
from hair_pipeline.inputs.shards import Assignments, assign_shards

PEOPLE = st.dictionaries(st.integers(0, 999).map("CP{:06d}".format), st.integers(1, 30), max_size=60)


@given(PEOPLE, PEOPLE, st.integers(1, 100))
def test_new_people_make_new_shards_and_old_ones_stay(
    people: dict[str, int], newcomers: dict[str, int], size: int
) -> None:
    before = assign_shards(people, size)
    after = assign_shards(newcomers | people, size, before)
    assert all(after[source] == before[source] for source in people)
    new = {after[source] for source in newcomers if source not in people}
    assert not new & set(before.values())


@given(PEOPLE, st.integers(1, 100))
def test_sizes(people: dict[str, int], size: int) -> None:
    shards = assign_shards(people, size)
    names = sorted(set(shards.values()))
    assert names == [f"shard_{number:04d}" for number in range(len(names))]
    for name in names:
        members = [people[source] for source in shards if shards[source] == name]
        assert len(members) == 1 or sum(members) <= size


def test_a_person_who_left_and_came_back_stands_in_the_old_shard() -> None:
    before = assign_shards({"a": 1, "b": 1}, 1)
    without = before | assign_shards({"b": 1, "c": 1}, 1, before)
    assert assign_shards({"a": 1, "b": 1, "c": 1}, 1, without) == before | {"c": "shard_0002"}


def test_assignments_survive_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "assignments.json"
    assert Assignments.read(path) == Assignments()
    kept = Assignments({"b": "shard_0001", "a": "shard_0000"}, {"a": "train"}, 0.05, 3)
    kept.write(path)
    assert Assignments.read(path) == kept


@pytest.mark.parametrize(
    "torn", ["", "{}", '{"shards": {"a"', "[]", '{"shards": 1, "splits": {}, "fraction": 0, "seed": 0}']
)
def test_a_damaged_file_is_refused(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "assignments.json"
    path.write_text(torn)
    with pytest.raises(PipelineError, match="stay where the last catalog has them"):
        Assignments.read(path)
