"""What people see on an asset: here, the way to a report, and whose faces."""

import dagster as dg
import pytest

from hair_pipeline.evaluation import ab_test
from hair_pipeline.evaluation.ab_files import VerdictResult
from hair_pipeline.files import write_bytes
from hair_pipeline.orchestration.assets.evaluation import ab_verdict
from hair_pipeline.orchestration.metadata import report_link
from hair_pipeline.orchestration.resources import PipelineResource
from hair_pipeline.settings import Settings


@pytest.mark.parametrize("customers", [True, False])
def test_customers_faces_stay_out_of_the_event_log(tmp_path, monkeypatch, customers):
    """The rendered sample's customers, used without a customers folder, may be seen."""
    monkeypatch.setenv("HAIR_PIPELINE_TRAINING_ROOT", str(tmp_path))
    monkeypatch.delenv("HAIR_PIPELINE_CUSTOMERS_ROOT", raising=False)
    if customers:
        monkeypatch.setenv("HAIR_PIPELINE_CUSTOMERS_ROOT", str(tmp_path / "customers"))
    preview, report = tmp_path / "preview.jpg", tmp_path / "reports" / "ab" / "report.html"
    write_bytes(preview, b"faces")
    result = VerdictResult("approve", ["clear"], tmp_path, report, {"improvement": 0.2}, preview, "d", "t", "v")
    monkeypatch.setattr(ab_test, "run_ab_test", lambda *_: result)
    metadata = ab_verdict(PipelineResource()).metadata
    assert ("preview" in metadata) != customers
    assert ("data:image" in str(metadata)) != customers
    assert {"verdict", "reasons", "report", "improvement"} <= set(metadata)


def test_a_report_is_linked_where_it_is_served_and_named_by_its_path_elsewhere(tmp_path):
    alone = Settings(training_root=tmp_path)
    report = alone.reports / "eval" / "v 1" / "report.html"
    assert report_link(report, alone) == {"report": dg.MetadataValue.path(str(report))}
    served = Settings(training_root=tmp_path, reports_url="https://reports.example/hair/")
    assert report_link(report, served) == {
        "report": dg.MetadataValue.url("https://reports.example/hair/eval/v%201/report.html"),
        "report_path": dg.MetadataValue.path(str(report)),
    }
