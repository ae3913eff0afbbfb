"""Small models for the tests of this floor."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)  # the models are so small that more threads only wait for each other


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
