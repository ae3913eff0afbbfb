"""The forehead joins the hair, and nothing else does."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hair_pipeline.inputs.hair_rim import BROW
from hair_pipeline.processing.fringe import with_forehead


@given(st.integers(0, 2**32 - 1), st.floats(-50, 150), st.floats(1, 150))
def test_only_face_above_the_brows_changes_sides(seed: int, top: float, height: float) -> None:
    random = np.random.default_rng(seed)
    hair = random.random((64, 64)) < 0.3
    face = (random.random((64, 64)) < 0.5) & ~hair
    more_hair, less_face = with_forehead(hair, face, np.array([10, top, 40, top + height]))
    assert np.array_equal(more_hair | less_face, hair | face)
    assert not (more_hair & less_face).any()
    moved = more_hair & ~hair
    assert (moved <= face).all()
    rows = np.flatnonzero(moved.any(1))
    assert rows.size == 0 or rows.max() < max(0, round(top + BROW * height))


def test_without_a_box_nothing_changes() -> None:
    hair, face = np.eye(8, dtype=bool), ~np.eye(8, dtype=bool)
    assert with_forehead(hair, face, None) == (hair, face)
