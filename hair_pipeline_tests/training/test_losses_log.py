"""The logged losses as a check reads them."""

import json

from hair_pipeline.training.losses_log import loss_curves


def test_start_end_and_what_was_not_finite(tmp_path):
    folder = tmp_path / "stage2"
    folder.mkdir()
    lines = [{"step": step, "loss/mask_l2": 2.0 - step / 10, "learning_rate": 1.0} for step in range(20)]
    for step in (0, 4, 8):
        lines[step]["loss/lpips"] = 0.5
    del lines[7]["loss/mask_l2"]
    (folder / "losses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lpips, mask_l2 = loss_curves(tmp_path)
    assert (mask_l2.name, mask_l2.steps, mask_l2.missing) == ("stage2/mask_l2", 19, 1)
    assert (mask_l2.start, round(mask_l2.end, 6)) == (2.0, 0.1)
    assert mask_l2.ratio < 1
    assert (lpips.steps, lpips.missing, lpips.ratio) == (3, 0, 1.0)


def test_a_run_without_logs_has_no_curves(tmp_path):
    assert loss_curves(tmp_path) == []
