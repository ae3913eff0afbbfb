"""The drawing in docs/architecture.md is the lineage's."""

from hair_pipeline.orchestration.drawing import PAGE, redrawn


def test_the_drawing_is_up_to_date():
    page = PAGE.read_text(encoding="utf-8")
    assert redrawn(page) == page, "run `uv run python -m hair_pipeline.orchestration.drawing`"
    assert "stage2_checkpoint --> eval_report" in page
    assert "stage2_checkpoint[stage2_checkpoint]:::gpu" in page
    assert "bald_images{{bald_images}}:::cpu" in page


def test_another_lineage_would_show():
    page = PAGE.read_text(encoding="utf-8").replace("  stage2_checkpoint --> eval_report\n", "")
    assert redrawn(page) != page
