"""Checkpoints appear whole or not at all, and bring every state back."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Iterator
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


@pytest.mark.parametrize("normal_numbers_before", [0, 1])
def test_random_numbers_go_on_where_they_were(tmp_path: Path, normal_numbers_before: int) -> None:
    """Normal numbers come in pairs, of which generators keep the second one."""
    random.seed(0)
    for _ in range(normal_numbers_before):
        random.gauss(), np.random.randn()
    checkpoint.save(tmp_path, state(1), keep=1)
    expected = random.gauss(), random.random(), np.random.randn(), torch.rand(3)
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    checkpoint.restore_rng(loaded.rng)
    assert (random.gauss(), random.random(), np.random.randn()) == expected[:3]
    assert torch.equal(torch.rand(3), expected[3])


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
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is None
    checkpoint.save(tmp_path, state(1), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_a_damaged_later_one_does_not_crowd_out_a_good_one(tmp_path: Path) -> None:
    """Gone on from step 1 since step 9 is damaged: the new step 2 stays, and the damaged one goes."""
    checkpoint.save(tmp_path, state(1), keep=1)
    (checkpoint.save(tmp_path / "later", state(9), keep=1)).rename(tmp_path / "step_00000009")
    (tmp_path / "step_00000009" / "ema.safetensors").unlink()
    checkpoint.save(tmp_path, state(2), keep=1)
    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_00000002"]


@pytest.mark.parametrize("call", range(7))
def test_a_disk_full_at_any_write_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Four tensor files, a document, two folders: each of their syncs fails in turn, as it does on a full disk."""
    checkpoint.save(tmp_path, state(1), keep=1)
    calls, real = 0, os.fsync

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > call:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PipelineError, match=r"cannot be saved(.|\n)*free some disk space"):
        checkpoint.save(tmp_path, state(2), keep=1)
    monkeypatch.undo()
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    assert loaded.step == (1 if call < 6 else 2)  # the last sync comes after the rename: it is there already
    assert not list(tmp_path.glob(".tmp-*"))


def test_older_checkpoints_give_way_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, state(step), keep=3)
    real = os.fsync

    def room_for_two(handle: int) -> None:
        if len(list(tmp_path.glob("step_*"))) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", room_for_two)
    checkpoint.save(tmp_path, state(4), keep=3)
    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_00000003", "step_00000004"]
    assert "give way" in caplog.text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk_loses_nothing(small_disk: Path) -> None:
    first = state(1)
    checkpoint.save(small_disk, first, keep=2)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 200_000)
    large = state(2)
    large.weights = {"w": torch.zeros(40_000)}
    with pytest.raises(PipelineError, match="No space left"):
        checkpoint.save(small_disk, large, keep=2)
    loaded = checkpoint.load_newest(small_disk)
    assert loaded is not None
    assert loaded.step == 1
    assert torch.equal(loaded.weights["w"], first.weights["w"])
    ballast.unlink()
    checkpoint.save(small_disk, large, keep=1)
    assert sorted(path.name for path in small_disk.iterdir()) == ["step_00000002"]


def test_nested_optimizer_state_survives(tmp_path: Path) -> None:
    """bitsandbytes keeps its quantisation state in a dictionary of its own."""
    saved = state(1)
    saved.optimizer = {
        "state": {0: {"step": 3, "quantised": {"state1": torch.arange(4, dtype=torch.uint8), "blocks": 2}}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}],
    }
    checkpoint.save(tmp_path, saved, keep=1)
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    values = loaded.optimizer["state"][0]
    assert values["step"] == 3
    assert values["quantised"]["blocks"] == 2
    assert torch.equal(values["quantised"]["state1"], torch.arange(4, dtype=torch.uint8))
    assert loaded.optimizer["param_groups"] == saved.optimizer["param_groups"]


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path / "absent") is None
