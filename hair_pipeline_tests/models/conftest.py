"""Small models for the tests of this floor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the models are so small that more threads only wait for each other

WEIGHTS = Path(
    os.environ.get("HAIR_PIPELINE_MODELS_DIR", Path(__file__).resolve().parents[2].parent / "shared" / "weights")
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    """The folder of real pretrained networks, or a skip."""
    if not (WEIGHTS / "lpips_alex.safetensors").exists():
        pytest.skip(f"no pretrained networks in {WEIGHTS} (set HAIR_PIPELINE_MODELS_DIR)")
    return WEIGHTS
