"""What people see on an asset: here, the way to a report."""

import dagster as dg

from hair_pipeline.orchestration.metadata import report_link
from hair_pipeline.settings import Settings


def test_a_report_is_linked_where_it_is_served_and_named_by_its_path_elsewhere(tmp_path):
    alone = Settings(training_root=tmp_path)
    report = alone.reports / "eval" / "v 1" / "report.html"
    assert report_link(report, alone) == {"report": dg.MetadataValue.path(str(report))}
    served = Settings(training_root=tmp_path, reports_url="https://reports.example/hair/")
    assert report_link(report, served) == {
        "report": dg.MetadataValue.url("https://reports.example/hair/eval/v%201/report.html"),
        "report_path": dg.MetadataValue.path(str(report)),
    }
