"""The smallest task there is: regress a sum of three numbers. With faults to order."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from hair_pipeline.training import checkpoint, loop, processes
from hair_pipeline.training.sampler import Batches, Draw, StreamBatches, generator
from hair_pipeline.training.task import Batch, LoopConfig, StepLosses, Task

CONFIG = LoopConfig(steps=12, batch_size=4, accumulation=2, checkpoint_every=3, validate_every=6, ema_decay=0.9)


class Points(Dataset[Batch]):
    def __getitem__(self, draw: Draw) -> Batch:
        x = torch.randn(3, generator=generator(0, draw.position))
        return {"x": x, "y": x.sum()[None], "position": torch.tensor(draw.position)}


class Line(Task):
    """Regress a sum.

    Args:
        bad: micro-batches of NaN.
        stop_at: the step at which SIGTERM comes.
        stop_in_validation: the step after which SIGTERM comes while it validates.
        dropout: probability; its random numbers come from the process's own generator.
        batch_norm: BatchNorm in the place of dropout.
    """

    def __init__(
        self,
        bad: tuple[int, ...] = (),
        stop_at: int | None = None,
        stop_in_validation: int | None = None,
        dropout: float = 0.1,
        batch_norm: bool = False,
    ) -> None:
        torch.manual_seed(0)
        between = nn.BatchNorm1d(8) if batch_norm else nn.Dropout(dropout)
        super().__init__("line", nn.Sequential(nn.Linear(3, 8), between, nn.Linear(8, 1)), Points())
        self.bad, self.stop_at, self.stop_in_validation = bad, stop_at, stop_in_validation

    def batches(self, config: LoopConfig) -> Batches:
        return StreamBatches(50, config.batch_size, config.seed)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": 0.01}]

    def losses(self, batch: Batch, step: int) -> StepLosses:
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        bad = int(batch["position"][0]) // 4 in self.bad
        loss = (self.prepared(batch["x"] * torch.nan if bad else batch["x"]) - batch["y"]).square().mean()
        return StepLosses({"l2": loss}, {"l2": 1.0})

    def validate(self, step: int) -> dict[str, float]:
        if step == self.stop_in_validation:
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.randn(64, 3, generator=generator(1))
        return {"l2": float((self.network(x) - x.sum(1, keepdim=True)).square().mean())}


def train_line(folder: Path, config: LoopConfig, bad: tuple[int, ...] = (), stop_at: int | None = None) -> None:
    """Train without dropout. Every process writes what it ends with; an interruption is no failure."""
    task = Line(bad, stop_at, dropout=0.0)
    try:
        result = loop.run(task, config, folder)
    except loop.Interrupted:
        return
    torch.save(
        {"weights": dict(task.state()), "bad_steps": result.bad_steps, "end": result.end},
        folder / f"rank{processes.rank()}.pt",
    )


def everything(folder: Path) -> dict[str, Any]:
    """The newest checkpoint of a run, without what is measured in seconds."""
    saved = checkpoint.load_newest(folder / "checkpoints")
    assert saved is not None
    return vars(saved) | {"optimizer": saved.optimizer["state"]}


def assert_same(a: Any, b: Any) -> None:
    """Bit by bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b
