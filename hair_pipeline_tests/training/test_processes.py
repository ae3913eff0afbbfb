"""Several processes (gloo, CPU) train like one; they skip, stop and resume together; one that dies fails the run."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hair_pipeline.training import checkpoint, loop
from hair_pipeline.training.sampler import share
from hair_pipeline.training.task import LoopConfig
from hair_pipeline_tests.training import children, tiny_stage
from hair_pipeline_tests.training.tiny_tasks import CONFIG, Line, assert_same, everything, train_line

STEPS = 6
LEARNING_RATE = 1e-3


def curve(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


def losses(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if not name.startswith("gradient_norm")}


def assert_close(a: Any, b: Any, tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=0, atol=tolerance), name


def root_mean_square_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Over all weights. Adam moves a weight whose gradient is all but 0 by whatever the last bit of that says, so that
    single ones may differ by a part of a step, on some processors and not on others."""
    assert a.keys() == b.keys()
    return torch.cat([(a[name] - b[name]).flatten() for name in a]).square().mean().sqrt().item()


def train_stage(data: Path, folder: Path, name: str) -> None:
    """A tiny stage with all five losses, windows of three micro-batches."""
    torch.set_num_threads(1)
    losses = tiny_stage.only(*tiny_stage.TERMS, pixel_every=2, pixel_max_t=0.7)
    config = tiny_stage.stage_config(
        max_steps=STEPS,
        gradient_accumulation_steps=3,
        validate_every=3,
        losses=losses,
        learning_rate=LEARNING_RATE,
        learning_rate_deep=LEARNING_RATE,
    )
    task = tiny_stage.tiny_stage(data, config, name, judges=tiny_stage.random_judges())
    loop.run(task, LoopConfig.of_stage(config, len(task.data)), folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_two_processes_train_like_one(tmp_path: Path, name: str) -> None:
    """Three micro-batches per step: one process has two of them, the other one."""
    tiny_stage.write_processed(tmp_path / "data")
    one = children.start(train_stage, tmp_path / "data", tmp_path / "one", name)
    one.join(600)
    assert one.exitcode == 0
    assert children.together(2, train_stage, tmp_path / "data", tmp_path / "two", name) == [0, 0]
    alone, shared = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(alone) == len(shared) == STEPS
    assert shared[0] == pytest.approx(alone[0], rel=1e-5, abs=1e-6)  # losses and gradients, before any rounding adds up
    for a, b in zip(alone, shared, strict=True):
        assert losses(b) == pytest.approx(losses(a), rel=1e-4, abs=1e-6)
        assert b["gradient_norm/total"] == pytest.approx(a["gradient_norm/total"], rel=2e-3)
    a, b = everything(tmp_path / "one"), everything(tmp_path / "two")
    assert root_mean_square_difference(a["weights"], b["weights"]) < 0.01 * LEARNING_RATE
    assert root_mean_square_difference(a["ema"], b["ema"]) < 0.01 * LEARNING_RATE
    for step, numbers in a["progress"]["validations"].items():
        assert b["progress"]["validations"][step] == pytest.approx(numbers, rel=1e-4)


@pytest.mark.parametrize("world", [2, 3])
def test_a_bad_batch_of_one_process_is_skipped_by_all(tmp_path: Path, world: int) -> None:
    """With three processes the first one has no micro-batch at all."""
    bad = (3, 8)
    train_line(tmp_path, CONFIG, bad)
    alone = torch.load(tmp_path / "rank0.pt", weights_only=True)
    assert children.together(world, train_line, tmp_path / "team", CONFIG, bad) == [0] * world
    results = [torch.load(tmp_path / "team" / f"rank{rank}.pt", weights_only=True) for rank in range(world)]
    assert [result["bad_steps"] for result in results] == [2] * world
    for result in results:
        assert_close(result["weights"], alone["weights"], 1e-6)
        assert_same(result["weights"], results[0]["weights"])
        assert result["end"] == pytest.approx(alone["end"], rel=1e-4)
    assert len(curve(tmp_path / "team")) == CONFIG.steps
    assert len(list((tmp_path / "team" / "tensorboard").iterdir())) == 1


def test_a_process_without_work_waits_for_those_with_loaders(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=3, accumulation=1, workers=1)
    train_line(tmp_path / "alone", config)
    assert children.together(2, train_line, tmp_path / "team", config) == [0, 0]
    assert_close(everything(tmp_path / "alone")["weights"], everything(tmp_path / "team")["weights"], 1e-6)


def train_with_batch_norm(folder: Path, config: LoopConfig) -> None:
    loop.run(Line(bad=(1,), batch_norm=True), config, folder)


def test_the_statistics_of_the_process_with_work_are_saved_by_the_one_without(tmp_path: Path) -> None:
    """None of the skipped step, as in a single process."""
    config = dataclasses.replace(CONFIG, steps=3, accumulation=1)
    train_with_batch_norm(tmp_path / "alone", config)
    assert children.together(2, train_with_batch_norm, tmp_path / "team", config) == [0, 0]
    alone, team = everything(tmp_path / "alone"), everything(tmp_path / "team")
    assert team["weights"]["1.running_mean"].abs().max() > 0
    assert_close(alone["weights"], team["weights"], 1e-6)
    assert_close(alone["ema"], team["ema"], 1e-6)
    for step, numbers in alone["progress"]["validations"].items():
        assert team["progress"]["validations"][step] == pytest.approx(numbers, rel=1e-4)


def test_sigterm_of_one_process_stops_all_and_any_number_goes_on(tmp_path: Path) -> None:
    """Stopped as two processes, gone on with as one: the curve is the one of a single process."""
    train_line(tmp_path / "alone", CONFIG)
    assert children.together(2, train_line, tmp_path / "parts", CONFIG, (), 4) == [0, 0]
    saved = checkpoint.load_newest(tmp_path / "parts" / "checkpoints")
    assert saved is not None
    assert saved.step == 5
    assert {name.partition(".")[0] for name in saved.rng} == {"0", "1"}
    train_line(tmp_path / "parts", CONFIG)
    a, b = everything(tmp_path / "alone"), everything(tmp_path / "parts")
    assert_close(a["weights"], b["weights"], 1e-6)
    for x, y in zip(curve(tmp_path / "alone"), curve(tmp_path / "parts"), strict=True):
        assert y == pytest.approx(x, rel=1e-4)


def test_a_checkpoint_of_one_process_is_gone_on_from_by_two(tmp_path: Path) -> None:
    train_line(tmp_path / "alone", CONFIG)
    train_line(tmp_path / "parts", CONFIG, (), 6)
    assert children.together(2, train_line, tmp_path / "parts", CONFIG) == [0, 0]
    assert_close(everything(tmp_path / "alone")["weights"], everything(tmp_path / "parts")["weights"], 1e-6)


def test_ten_bad_steps_in_a_row_stop_every_process(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=40)
    codes = children.together(2, train_line, tmp_path, config, tuple(range(9, 80, 2)))
    assert codes == [1, 1]
    saved = checkpoint.load_newest(tmp_path / "checkpoints")
    assert saved is not None
    assert all(torch.isfinite(tensor).all() for tensor in saved.weights.values())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_that_dies_fails_the_run_with_its_message(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "hair_pipeline_tests.training.dying_rank", str(tmp_path)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    assert "the disk of process 1 is on fire" in done.stderr
    saved = checkpoint.load_newest(tmp_path / "checkpoints")
    assert saved is not None
    assert saved.step == 3


@pytest.mark.parametrize("accumulation", [1, 3, 4, 7])
@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_every_micro_batch_has_one_process(accumulation: int, world: int) -> None:
    shares = [share(accumulation, rank, world) for rank in range(world)]
    assert [place for part in shares for place in part] == list(range(accumulation))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
