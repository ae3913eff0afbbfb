"""The check on identity embeddings: what is wrong with one is what the catalog calls wrong, and nothing more."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hair_pipeline.inputs.columns import NO_FLAGS, SCHEMA
from hair_pipeline.inputs.training_face import EMBEDDING_DIM, MAX_NORM_ERROR
from hair_pipeline.orchestration.checks import embeddings_are_sound
from hair_pipeline.orchestration.resources import PipelineResource


@pytest.mark.parametrize(("norm", "sound"), [(1 + 0.9 * MAX_NORM_ERROR, True), (1 + 1.1 * MAX_NORM_ERROR, False)])
def test_an_embedding_that_the_catalog_relies_on_is_sound(tmp_path, monkeypatch, norm: float, sound: bool) -> None:
    monkeypatch.setenv("HAIR_PIPELINE_TRAINING_ROOT", str(tmp_path))
    settings = PipelineResource().settings
    row = NO_FLAGS | {"accepted": True, "image_id": "a-1", "source": "a", "shard": "shard_0000", "split": "train"}
    folder = settings.processed / "identity_embeddings"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row], schema=SCHEMA), settings.catalog_path)
    vector = np.full(EMBEDDING_DIM, norm / np.sqrt(EMBEDDING_DIM), np.float32)
    table = pd.DataFrame({"image_id": ["a-1"], "reliable": [True], "embedding": [vector]})
    table.to_parquet(folder / "shard_0000.parquet")
    assert embeddings_are_sound(PipelineResource()).passed is sound
