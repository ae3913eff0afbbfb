"""The loop: exact after kill and resume, patient with a bad batch, strict with many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hair_pipeline.errors import PipelineError
from hair_pipeline.training import checkpoint, loop
from hair_pipeline.training.task import LoopConfig
from hair_pipeline_tests.training.tiny_tasks import CONFIG, Line, assert_same, everything


def test_it_learns_and_reports(tmp_path: Path) -> None:
    config = LoopConfig(steps=150, batch_size=8, ema_decay=0.9)
    result = loop.run(Line(), config, tmp_path)
    assert result.end["l2"] < 0.3 * result.start["l2"]
    assert (tmp_path / "tensorboard").is_dir()
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(150))
    assert {"loss/l2", "weighted/l2", "learning_rate", "gradient_norm/total"} <= lines[0].keys()


def test_learning_rate_warms_up_and_falls(tmp_path: Path) -> None:
    loop.run(Line(), LoopConfig(steps=40, batch_size=2, warmup_fraction=0.25), tmp_path)
    rates = [json.loads(line)["learning_rate"] for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9] == pytest.approx(0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-4


def test_sigterm_saves_and_the_run_goes_on_exactly(tmp_path: Path) -> None:
    loop.run(Line(), CONFIG, tmp_path / "whole")
    with pytest.raises(loop.Interrupted, match="after step 5 of 12"):
        loop.run(Line(stop_at=4), CONFIG, tmp_path / "parts")
    loop.run(Line(), CONFIG, tmp_path / "parts")
    assert_same(everything(tmp_path / "whole"), everything(tmp_path / "parts"))
    logs = [(tmp_path / name / "losses.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_a_truncated_newest_checkpoint_costs_only_time(tmp_path: Path) -> None:
    loop.run(Line(), CONFIG, tmp_path / "whole")
    with pytest.raises(loop.Interrupted):
        loop.run(Line(stop_at=7), CONFIG, tmp_path / "parts")
    newest = sorted((tmp_path / "parts" / "checkpoints").glob("step_*"))[-1] / "ema.safetensors"
    newest.write_bytes(newest.read_bytes()[:20])
    loop.run(Line(), CONFIG, tmp_path / "parts")
    assert_same(everything(tmp_path / "whole"), everything(tmp_path / "parts"))


def test_a_bad_batch_is_skipped_and_counted(tmp_path: Path) -> None:
    result = loop.run(Line(bad=(3, 8)), CONFIG, tmp_path)
    assert result.bad_steps == 2
    assert all(torch.isfinite(tensor).all() for tensor in everything(tmp_path)["weights"].values())


def test_many_bad_batches_stop_and_keep_the_last_checkpoint(tmp_path: Path) -> None:
    config = LoopConfig(steps=40, batch_size=4, checkpoint_every=5)
    with pytest.raises(PipelineError, match="10 steps in a row"):
        loop.run(Line(bad=tuple(range(7, 40))), config, tmp_path)
    saved = checkpoint.load_newest(tmp_path / "checkpoints")
    assert saved is not None
    assert all(torch.isfinite(tensor).all() for tensor in saved.weights.values())
