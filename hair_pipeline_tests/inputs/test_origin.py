"""The embedded sample never takes the place of other inputs; other inputs may replace it, and may move."""

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from hair_pipeline.cli import app
from hair_pipeline.doctor import _origin
from hair_pipeline.errors import PipelineError
from hair_pipeline.inputs import origin
from hair_pipeline.inputs.origin import record_origin, refuse_sample_in_place_of_others
from hair_pipeline.sample import write
from hair_pipeline.settings import SAMPLE_ROOT, Settings

REAL = {"k_hairstyle_root": Path("/data/k"), "training_face_root": Path("/data/faces")}


def test_the_sample_is_refused_where_a_catalog_of_other_inputs_stands(tmp_path: Path) -> None:
    sample = Settings(training_root=tmp_path)
    refuse_sample_in_place_of_others(sample)
    record_origin(sample)
    refuse_sample_in_place_of_others(sample)
    record_origin(sample.model_copy(update=REAL))
    with pytest.raises(
        PipelineError, match=r"(?s)data/sample/k_hairstyle.*made of /data/k\b.*set HAIR_PIPELINE_K_HAIRSTYLE_ROOT"
    ):
        refuse_sample_in_place_of_others(sample)
    with pytest.raises(PipelineError, match=r"(?s)made of /data/faces.*TRAINING_FACE_ROOT"):
        refuse_sample_in_place_of_others(sample.model_copy(update={"k_hairstyle_root": Path("/data/k")}))
    (finding,) = _origin(sample)
    assert finding.level == "error"


def test_other_inputs_may_move_and_may_take_the_sample_s_place(tmp_path: Path) -> None:
    for made_of in (REAL, {"k_hairstyle_root": SAMPLE_ROOT / "k_hairstyle"}):
        record_origin(Settings(training_root=tmp_path, **made_of))
        moved = Settings(training_root=tmp_path, k_hairstyle_root=tmp_path / "k", training_face_root=tmp_path / "f")
        refuse_sample_in_place_of_others(moved)


def test_a_catalog_without_a_record_is_the_sample_s_where_its_photos_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin, "SAMPLE_ROOT", tmp_path / "sample")
    roots = {name: tmp_path / "sample" / name for name in REAL}
    sample = Settings(training_root=tmp_path / "training", **roots)
    sample.processed.mkdir(parents=True)
    pd.DataFrame({"accepted": [False, True], "image_path": ["x", "a.jpg"]}).to_parquet(sample.catalog_path)
    with pytest.raises(PipelineError, match="made of other inputs"):
        refuse_sample_in_place_of_others(sample)
    sample.k_hairstyle_root.mkdir(parents=True)
    (sample.k_hairstyle_root / "a.jpg").touch()
    refuse_sample_in_place_of_others(sample)
    (sample.processed / "inputs.json").write_text("[]")
    with pytest.raises(PipelineError, match=r"inputs\.json.*(?s:.)*delete it"):
        refuse_sample_in_place_of_others(sample)


@pytest.mark.parametrize("command", ["demo", "run"])
def test_neither_demo_nor_run_without_inputs_touches_a_training_root_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("HAIR_PIPELINE_PROFILE", "sample")
    monkeypatch.setenv("HAIR_PIPELINE_TRAINING_ROOT", str(tmp_path))
    for name, root in REAL.items():
        monkeypatch.setenv(f"HAIR_PIPELINE_{name.upper()}", str(root))
        if command == "run":
            monkeypatch.delenv(f"HAIR_PIPELINE_{name.upper()}")
    monkeypatch.setattr(write, "write_sample", lambda *_: pytest.fail("the sample was written"))
    record_origin(Settings(training_root=tmp_path, **REAL))
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(app, [command])
    assert isinstance(done.exception, PipelineError)
    assert "made of /data/k" in done.exception.message
    assert sorted(tmp_path.rglob("*")) == before
