"""Checkpoints appear whole or not at all, and bring every state back."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from hair_pipeline.errors import PipelineError
from hair_pipeline.training import checkpoint
from hair_pipeline.training.checkpoint import TrainingState


def state(step: int) -> TrainingState:
    parameter = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.sum().backward()
    optimizer.step()
    return TrainingState(
        step=step,
        weights={"w": parameter},
        ema={"w": parameter.detach() + 1},
        optimizer=optimizer.state_dict(),
        scheduler={"last_epoch": step},
        progress={"bad_steps": 1},
    )


def test_a_round_trip_is_exact(tmp_path: Path) -> None:
    saved = state(3)
    checkpoint.save(tmp_path, saved, keep=2)
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    assert loaded.step == 3
    assert loaded.progress == saved.progress
    assert loaded.scheduler == saved.scheduler
    assert torch.equal(loaded.weights["w"], saved.weights["w"])
    assert torch.equal(loaded.ema["w"], saved.ema["w"])
    fresh = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2, 3))], lr=0.5)
    fresh.load_state_dict(loaded.optimizer)
    before, after = saved.optimizer, fresh.state_dict()
    assert before["param_groups"] == after["param_groups"]
    for key, value in before["state"][0].items():
        assert torch.equal(value, after["state"][0][key])


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(1), keep=1)
    expected = random.random(), np.random.rand(), torch.rand(3)
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    checkpoint.restore_rng(loaded.rng)
    assert (random.random(), np.random.rand()) == expected[:2]
    assert torch.equal(torch.rand(3), expected[2])


def test_old_ones_are_pruned(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, state(step), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]


@pytest.mark.parametrize("name", ["weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_one_is_skipped(tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint.save(tmp_path, state(1), keep=5)
    path = checkpoint.save(tmp_path, state(2), keep=5) / name
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2 if name != "state.json" else 0] ^= 0xFF
        path.write_bytes(data)
    else:
        path.unlink()
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    assert loaded.step == 1
    assert "damaged checkpoint" in caplog.text


def test_half_written_folders_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step_00000009").mkdir()
    checkpoint.save(tmp_path, state(1), keep=1)
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    assert loaded.step == 1
    assert not (tmp_path / ".tmp-step_00000009").exists()


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, state(1), keep=1)

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_bytes", full)
    with pytest.raises(PipelineError, match="cannot be saved"):
        checkpoint.save(tmp_path, state(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path / "absent") is None
