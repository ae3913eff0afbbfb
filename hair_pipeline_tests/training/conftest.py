"""What the tests of training share."""

from __future__ import annotations

import pytest

from hair_pipeline_tests.inputs.tiny_inputs import write_tiny_inputs
from hair_pipeline_tests.training.tiny_training import Trained, tiny_profile, train_all


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Every trainer's result on four people's photos. Leave it as it is: other modules use it, too."""
    inputs = write_tiny_inputs(tmp_path_factory.mktemp("inputs"), 4, 2, back_view=False)
    return train_all(inputs.settings(), tiny_profile())
