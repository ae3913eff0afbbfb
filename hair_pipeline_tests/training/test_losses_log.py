"""The logged losses as a check reads them."""

import json
from pathlib import Path

import numpy as np

from hair_pipeline.training.losses_log import loss_curves, mean_ratio


def write_log(folder: Path, **losses: list[float | None]) -> None:
    folder.mkdir()
    steps = zip(*losses.values(), strict=True)
    lines = [
        {"learning_rate": 1.0} | {f"loss/{name}": x for name, x in zip(losses, step, strict=True) if x is not None}
        for step in steps
    ]
    (folder / "losses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_start_end_and_what_was_not_finite(tmp_path):
    falling = [2.0 - step / 10 if step != 7 else None for step in range(21)]
    write_log(tmp_path / "stage2", mask_l2=falling, lpips=[0.5 if step in (0, 4, 8) else None for step in range(21)])
    lpips, mask_l2 = loss_curves(tmp_path)
    assert (mask_l2.name, mask_l2.steps, mask_l2.missing) == ("stage2/mask_l2", 20, 1)
    assert (mask_l2.start, mask_l2.end) == (np.mean(falling[:6]), np.mean(falling[-6:]))
    assert (lpips.steps, lpips.missing, lpips.ratio, lpips.noise) == (3, 0, 1.0, None)


def test_a_loss_rises_only_where_it_leaves_its_noise(tmp_path):
    random = np.random.default_rng(0)
    noise = random.uniform(0.5, 1.5, 60)
    write_log(tmp_path / "run", flat=noise.tolist(), rising=(noise + np.linspace(0, 2, 60)).tolist())
    flat, rising = loss_curves(tmp_path)
    assert not flat.rose
    assert rising.rose


def test_a_loss_computed_now_and_then_does_not_decide(tmp_path):
    """Three values of a loss that hangs on the timestep may differ by a factor of ten without meaning anything."""
    steady = [1.0 - step / 100 for step in range(40)]
    write_log(tmp_path / "run", mask_l2=steady, style=[None if step % 13 else 0.1 + step for step in range(40)])
    curves = loss_curves(tmp_path)
    assert mean_ratio(curves) == next(curve for curve in curves if curve.noise is not None).ratio < 1


def test_a_run_of_a_few_steps_is_judged_by_what_there_is(tmp_path):
    write_log(tmp_path / "run", a=[4.0, 3.0, 1.0], b=[1.0, 1.0, 1.0])
    ratio = mean_ratio(loss_curves(tmp_path))
    assert ratio is not None
    assert round(ratio, 6) == 0.5


def test_a_run_without_logs_has_no_curves(tmp_path):
    assert loss_curves(tmp_path) == []
    assert mean_ratio([]) is None
