"""The loop: exact after kill and resume, patient with a bad batch, strict with many."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from hair_pipeline.errors import PipelineError
from hair_pipeline.training import checkpoint, loop
from hair_pipeline.training.sampler import Batches, Draw, StreamBatches, generator
from hair_pipeline.training.task import Batch, LoopConfig, StepLosses, Task
from hair_pipeline_tests.training import tiny_stage


class Points(Dataset[Batch]):
    def __getitem__(self, draw: Draw) -> Batch:
        x = torch.randn(3, generator=generator(0, draw.position))
        return {"x": x, "y": x.sum()[None], "position": torch.tensor(draw.position)}


class Line(Task):
    """Regress a sum; `bad` names micro-batches with a NaN loss, `stop_at` the step at which SIGTERM comes."""

    def __init__(self, bad: tuple[int, ...] = (), stop_at: int | None = None) -> None:
        torch.manual_seed(0)
        super().__init__("line", nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.1), nn.Linear(8, 1)), Points())
        self.bad, self.stop_at = bad, stop_at

    def batches(self, config: LoopConfig) -> Batches:
        return StreamBatches(50, config.batch_size, config.seed)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": 0.01}]

    def losses(self, batch: Batch, step: int) -> StepLosses:
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        loss = (self.prepared(batch["x"]) - batch["y"]).square().mean()
        if int(batch["position"][0]) // 4 in self.bad:
            loss = loss * torch.nan
        return StepLosses({"l2": loss}, {"l2": 1.0})

    def validate(self, step: int) -> dict[str, float]:
        x = torch.randn(64, 3, generator=generator(1))
        return {"l2": float((self.network(x) - x.sum(1, keepdim=True)).square().mean())}


CONFIG = LoopConfig(steps=12, batch_size=4, accumulation=2, checkpoint_every=3, validate_every=6, ema_decay=0.9)


def everything(folder: Path) -> dict[str, Any]:
    saved = checkpoint.load_newest(folder / "checkpoints")
    assert saved is not None
    return {"weights": saved.weights, "ema": saved.ema, "optimizer": saved.optimizer["state"], "rng": saved.rng}


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


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


def test_a_stage_killed_at_any_moment_resumes_bit_by_bit(tmp_path: Path) -> None:
    tiny_stage.write_processed(tmp_path / "data")
    threads = torch.get_num_threads()
    try:
        tiny_stage.train(tmp_path / "data", tmp_path / "whole")
        command = [sys.executable, "-m", tiny_stage.__name__, str(tmp_path / "data"), str(tmp_path / "parts")]
        for kill_after in (3,):
            _run_until(command, tmp_path / "parts", kill_after)
        assert not list((tmp_path / "parts" / "checkpoints").glob("step_00000008"))
        tiny_stage.train(tmp_path / "data", tmp_path / "parts")
    finally:
        torch.set_num_threads(threads)
    assert_same(everything(tmp_path / "whole"), everything(tmp_path / "parts"))
    assert (tmp_path / "whole" / "losses.jsonl").read_text() == (tmp_path / "parts" / "losses.jsonl").read_text()


def _run_until(command: list[str], folder: Path, step: int) -> None:
    """Run until `losses.jsonl` shows a step, then SIGKILL."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = folder / "losses.jsonl"
    for _ in range(6000):
        done = path.read_text().splitlines() if path.exists() else []
        if process.poll() is not None or (done and done[-1].endswith("}") and json.loads(done[-1])["step"] >= step):
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
