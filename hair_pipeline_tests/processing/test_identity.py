"""How alike a shard's identity embeddings are."""

import numpy as np
import pytest

from hair_pipeline.processing.identity import agreement


def test_pairs_of_one_person_and_of_two_are_told_apart() -> None:
    cosines = np.array([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]])
    found = agreement(["a", "a", "b"], cosines)
    assert found == pytest.approx({"same_person_cosine": 0.8, "other_person_cosine": 0.2})
    assert agreement(["a"], np.ones((1, 1))) == {}
    assert agreement([], np.zeros((0, 0))) == {}
