"""Who lends whom a style."""

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from hair_pipeline.evaluation.cases import plan_validation, spread_over_people
from hair_pipeline.training.data import VectorTable

PHOTO = st.tuples(
    st.integers(0, 4), st.sampled_from(["straight", "wavy", "curly", None]), st.floats(-60, 60) | st.none()
)


def plan(photos: list[tuple[int, str | None, float | None]], order: list[int] | None = None):  # type: ignore[no-untyped-def]
    frame = pd.DataFrame(photos, columns=["source", "curl_class", "yaw"])
    frame["source"] = frame["source"].astype(str)
    frame["image_id"] = [f"photo {number:03d}" for number in range(len(frame))]
    frame["split"], frame["stage2"] = "validation", True
    ids = list(frame["image_id"])
    styles = VectorTable(ids, ids, np.zeros((len(ids), 2), np.float32))
    return plan_validation(frame if order is None else frame.iloc[order], styles, None)


@given(st.lists(PHOTO, min_size=1, max_size=25))
def test_a_donor_is_another_person_of_another_curl_class_where_there_is_one(
    photos: list[tuple[int, str | None, float | None]],
) -> None:
    made = plan(photos)
    for index, donor in enumerate(made.donors):
        person, curl, yaw = photos[index]
        others = [photo for photo in photos if photo[0] != person]
        if not others:
            assert donor is None
            continue
        assert donor is not None
        assert photos[donor][0] != person
        different = [photo for photo in others if photo[1] != curl]
        assert photos[donor][1] != curl or not different
        turn = [abs((photo[2] or 0) - (yaw or 0)) for photo in (different or others)]
        assert abs((photos[donor][2] or 0) - (yaw or 0)) <= min(turn) + 15


@given(st.lists(PHOTO, min_size=2, max_size=12), st.randoms())
def test_donors_do_not_depend_on_the_catalogs_order(photos: list[tuple[int, str | None, float | None]], chance) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(photos)))
    chance.shuffle(order)
    assert plan(photos, order).donors == plan(photos).donors


@given(st.lists(st.sampled_from("abcd"), max_size=20), st.integers(0, 8), st.integers(0, 20))
def test_every_person_comes_before_a_second_view_of_any(people: list[str], count: int, seen: int) -> None:
    chosen = spread_over_people(pd.Series(people, dtype=str), count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, len(people))
    views = [sum(people[place] == name for place in chosen) for name in set(people)]
    left = [people.count(name) for name in set(people)]
    assert all(n == most or n >= max(views) - 1 for n, most in zip(views, left, strict=True))
    before = spread_over_people(pd.Series(people[:seen], dtype=str), count)
    assert {place for place in chosen if place < seen} <= set(before)
