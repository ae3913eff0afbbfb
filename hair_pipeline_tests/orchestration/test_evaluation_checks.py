"""The check of the evaluation's thresholds names what falls short, and only what was to be measured."""

import pytest

from hair_pipeline.files import write_json
from hair_pipeline.orchestration.checks import metrics_reach_their_thresholds
from hair_pipeline.orchestration.resources import PipelineResource

NO_SECOND = {"value": None, "threshold": 0.7, "passed": None, "direction": "higher", "reason": "no second recogniser"}


def identity(value: float | None) -> dict[str, object]:
    passed = None if value is None else value >= 0.7
    return NO_SECOND | {"value": value, "passed": passed, "reason": "no reliable face" if value is None else None}


@pytest.mark.parametrize(
    ("raw", "second", "description"),
    [
        (identity(0.9), NO_SECOND, None),
        (identity(0.1366), NO_SECOND, "identity_raw 0.137, at least 0.70 is asked for"),
        (identity(None), NO_SECOND, "identity_raw: no reliable face"),
        (identity(0.9), identity(0.5), "identity_second_raw 0.500, at least 0.70 is asked for"),
    ],
)
def test_what_falls_short_is_named(raw, second, description, tmp_path, monkeypatch):
    monkeypatch.setenv("HAIR_PIPELINE_TRAINING_ROOT", str(tmp_path))
    write_json(tmp_path / "reports" / "eval" / "current.json", {"folder": "one"})
    metrics = {"identity_raw": raw, "identity_second_raw": second}
    write_json(tmp_path / "reports" / "eval" / "one" / "metrics.json", {"metrics": metrics})
    found = metrics_reach_their_thresholds(PipelineResource())
    assert found.passed == (description is None)
    assert found.description == description
