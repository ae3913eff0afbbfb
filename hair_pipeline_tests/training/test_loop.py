"""The loop: exact after kill and resume, patient with a bad batch, strict with many."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hair_pipeline.errors import PipelineError
from hair_pipeline.training import checkpoint, loop, stopwatch
from hair_pipeline.training.task import Batch, LoopConfig, StepLosses
from hair_pipeline_tests.training import children
from hair_pipeline_tests.training.tiny_tasks import CONFIG, Line, assert_same, everything, train_line


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
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == pytest.approx(0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-4  # what the last step was made with, not what would come after it


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


def test_a_bad_batch_leaves_no_trace_in_running_statistics(tmp_path: Path) -> None:
    result = loop.run(Line(bad=(3,), batch_norm=True), CONFIG, tmp_path)
    assert result.bad_steps == 1
    assert math.isfinite(result.end["l2"])
    saved = everything(tmp_path)
    for tensors in (saved["weights"], saved["ema"]):
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert int(saved["weights"]["1.num_batches_tracked"]) == 2 * (CONFIG.steps - 1)


def test_many_bad_batches_stop_and_keep_the_last_checkpoint(tmp_path: Path) -> None:
    config = LoopConfig(steps=40, batch_size=4, checkpoint_every=5)
    with pytest.raises(PipelineError, match="10 steps in a row"):
        loop.run(Line(bad=tuple(range(7, 40))), config, tmp_path)
    saved = checkpoint.load_newest(tmp_path / "checkpoints")
    assert saved is not None
    assert all(torch.isfinite(tensor).all() for tensor in saved.weights.values())


@pytest.mark.parametrize("step", [0, 6, 12])
def test_sigterm_in_a_validation_stops_at_once_and_loses_nothing(tmp_path: Path, step: int) -> None:
    loop.run(Line(), CONFIG, tmp_path / "whole")
    with pytest.raises(loop.Interrupted, match=f"during the validation after step {step}"):
        loop.run(Line(stop_in_validation=step), CONFIG, tmp_path / "parts")
    result = loop.run(Line(), CONFIG, tmp_path / "parts")
    assert set(result.start) == set(result.end) == {"l2"}
    assert_same(everything(tmp_path / "whole"), everything(tmp_path / "parts"))
    logs = [(tmp_path / name / "losses.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_a_step_stopped_by_sigterm_ends_well_within_thirty_seconds(tmp_path: Path) -> None:
    """A real signal to a real process, in the middle of a run that would go on for hours."""
    config = dataclasses.replace(CONFIG, steps=1_000_000)
    child = children.start(train_line, tmp_path, config)
    losses = tmp_path / "losses.jsonl"
    while child.is_alive() and not (losses.exists() and losses.read_text().count("\n") > 5):
        time.sleep(0.02)
    child.terminate()
    child.join(30)
    assert child.exitcode == 0
    saved = checkpoint.load_newest(tmp_path / "checkpoints")
    assert saved is not None
    assert saved.step == losses.read_text().count("\n")


def lead_a_group(folder: Path, config: LoopConfig) -> None:
    os.setsid()
    train_line(folder, config)


def test_sigterm_to_the_whole_process_group_leaves_the_loaders_at_work(tmp_path: Path) -> None:
    child = children.start(lead_a_group, tmp_path, dataclasses.replace(CONFIG, steps=1_000_000, workers=2))
    losses = tmp_path / "losses.jsonl"
    while child.is_alive() and not (losses.exists() and losses.read_text().count("\n") > 5):
        time.sleep(0.02)
    assert child.pid is not None
    os.killpg(child.pid, signal.SIGTERM)
    child.join(30)
    assert child.exitcode == 0
    saved = checkpoint.load_newest(tmp_path / "checkpoints")
    assert saved is not None
    assert saved.step == losses.read_text().count("\n")


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    loop.run(Line(), CONFIG, tmp_path)
    other = Line()
    other.network = other.prepared = torch.nn.Linear(3, 1)
    with pytest.raises(PipelineError, match=r"of another network: 0\.bias"):
        loop.run(other, CONFIG, tmp_path)


def test_a_checkpoint_beyond_the_last_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(loop.Interrupted):
        loop.run(Line(stop_at=7), CONFIG, tmp_path)
    with pytest.raises(PipelineError, match="has 8 steps behind it, the configuration asks for 5"):
        loop.run(Line(), dataclasses.replace(CONFIG, steps=5), tmp_path)


def test_a_disk_full_while_saving_loses_no_more_than_the_time_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.run(Line(), CONFIG, tmp_path / "whole")
    real = checkpoint._write_tensors

    def full(path: Path, tensors: Any) -> str:
        if "00000009" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, tensors)

    monkeypatch.setattr(checkpoint, "_write_tensors", full)
    with pytest.raises(PipelineError, match="No space left"):
        loop.run(Line(), CONFIG, tmp_path / "parts")
    monkeypatch.undo()
    loop.run(Line(), CONFIG, tmp_path / "parts")
    assert_same(everything(tmp_path / "whole"), everything(tmp_path / "parts"))


def test_changed_learning_rates_take_effect_on_resume(tmp_path: Path) -> None:
    """What the configuration says now counts, not what it said when the checkpoint was saved."""
    with pytest.raises(loop.Interrupted):
        loop.run(Line(stop_at=5), CONFIG, tmp_path)
    faster = Line()
    faster.parameter_groups = lambda: [{"params": list(faster.network.parameters()), "lr": 0.05}]  # type: ignore[method-assign]
    loop.run(faster, CONFIG, tmp_path)
    rates = [json.loads(line)["learning_rate"] for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert rates[5] < 0.01 < rates[6]


def test_another_optimizer_goes_on_from_the_weights_with_moments_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As `--resume --force` does after optimizer: adamw8bit was set, or taken back."""
    with pytest.raises(loop.Interrupted):
        loop.run(Line(stop_at=5), CONFIG, tmp_path)
    saved = checkpoint.load_newest(tmp_path / "checkpoints")
    assert saved is not None
    for moments in saved.optimizer["state"].values():
        moments |= {"state1": moments.pop("exp_avg"), "state2": moments.pop("exp_avg_sq")}
    checkpoint.save(tmp_path / "checkpoints", saved, keep=1)
    result = loop.run(Line(), CONFIG, tmp_path)
    assert result.steps == CONFIG.steps
    assert result.bad_steps == 0
    assert "moments are another optimizer's" in caplog.text


def test_losses_of_a_window_are_averaged(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=1)
    loop.run(Line(dropout=0), dataclasses.replace(config, batch_size=8, accumulation=1), tmp_path / "one")
    loop.run(Line(dropout=0), config, tmp_path / "two")
    first, second = (json.loads((tmp_path / name / "losses.jsonl").read_text()) for name in ("one", "two"))
    assert second == pytest.approx(first, rel=1e-5)


def test_where_the_time_goes_is_measured(tmp_path: Path) -> None:
    shares = loop.run(Line(), CONFIG, tmp_path).shares
    assert 0 < shares["data_share"] < shares["other_share"] < 1
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"time/data_share", "time/other_share", "validation/l2", "loss/l2"} <= set(events.Tags()["scalars"])
    assert "time" not in (tmp_path / "losses.jsonl").read_text()


def test_the_first_lesson_is_no_part_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow(Line):
        def before_first_step(self) -> dict[str, float]:
            now[0] += 1000
            return {}

        def losses(self, batch: Batch, step: int) -> StepLosses:
            now[0] += 1
            return super().losses(batch, step)

    assert loop.run(Slow(), CONFIG, tmp_path).shares == {"data_share": 0, "other_share": 0}


def test_the_terms_of_a_run_are_those_of_all_its_parts(tmp_path: Path) -> None:
    class Changing(Line):
        def losses(self, batch: Batch, step: int) -> StepLosses:
            losses = super().losses(batch, step)
            return StepLosses({"early" if step < 2 else "late": losses.raw["l2"]})

    with pytest.raises(loop.Interrupted):
        loop.run(Changing(stop_at=4), CONFIG, tmp_path)
    assert loop.run(Changing(), CONFIG, tmp_path).terms == ["early", "late"]


def test_a_process_without_a_loss_of_its_own_steps_under_the_loss_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradients come from the others; the scaler would otherwise start at the first loss."""
    accelerator = loop._accelerator(CONFIG)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    monkeypatch.setattr(loop, "_accelerator", lambda config: accelerator)
    task = Line()
    engine = loop.Engine.build(task, CONFIG)
    before = task.network[2].bias.clone()  # type: ignore[index]
    engine.optimizer.param_groups[0]["lr"] = 0.01  # instead of the warm-up's first, 0
    for parameter in engine.trainable:
        parameter.grad = torch.ones_like(parameter)
    engine.step(CONFIG, apply=True)
    assert not torch.equal(task.network[2].bias, before)  # type: ignore[index]


def test_eight_bit_adam_needs_a_gpu_and_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LoopConfig(steps=1, batch_size=1, optimizer="adamw8bit")
    groups = Line().parameter_groups()
    with pytest.raises(PipelineError, match="needs an NVIDIA GPU"):
        loop.make_optimizer(groups, config, torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(PipelineError, match=r"not installed\n(.*)adam8bit"):
        loop.make_optimizer(groups, config, torch.device("cuda"))


def test_eight_bit_adam_gets_groups_rates_and_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class AdamW8bit:
        def __init__(self, groups: list[dict[str, Any]], weight_decay: float) -> None:
            asked.update(rates=[group["lr"] for group in groups], weight_decay=weight_decay)

    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=SimpleNamespace(AdamW8bit=AdamW8bit)))
    config = LoopConfig(steps=1, batch_size=1, optimizer="adamw8bit", weight_decay=0.02)
    loop.make_optimizer(Line().parameter_groups(), config, torch.device("cuda"))
    assert asked == {"rates": [0.01], "weight_decay": 0.02}
