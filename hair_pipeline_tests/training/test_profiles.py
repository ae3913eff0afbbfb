"""The training plan of the specification (section 6) reaches the optimizer, the schedule and the network."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from hair_pipeline.errors import PipelineError
from hair_pipeline.profile import EvaluationConfig, PatchEncoderConfig, StageConfig, load_profile
from hair_pipeline.training.loop import Engine
from hair_pipeline.training.sampler import MixedBatches
from hair_pipeline.training.task import LoopConfig
from hair_pipeline_tests.training import tiny_stage

SAMPLES = 3200


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processed")
    tiny_stage.write_processed(folder)
    return folder


def engine(data: Path, config: StageConfig) -> tuple[Engine, LoopConfig, Any]:
    """What a run with these values trains with, on a tiny network."""
    config = config.model_copy(update={"losses": tiny_stage.only("mask_l2"), "finetune_blocks": ("mid_block",)})
    task = tiny_stage.tiny_stage(data, config)
    loop_config = LoopConfig.of_stage(config, SAMPLES)
    return Engine.build(task, loop_config), loop_config, task


@pytest.mark.parametrize(("stage", "epochs"), [("stage1", 60), ("stage2", 120)])
def test_rtx24gb_is_the_specification(data: Path, stage: str, epochs: int) -> None:
    config: StageConfig = getattr(load_profile("rtx24gb"), stage)
    built, values, task = engine(data, config)
    assert (config.resolution, config.epochs) == (512, epochs)
    assert (values.batch_size, values.accumulation) == (4, 4)
    assert values.steps == epochs * SAMPLES // 16
    assert values.validate_every == SAMPLES // 16  # every epoch
    assert {group["name"]: group["initial_lr"] for group in built.optimizer.param_groups} == {"new": 1e-4, "deep": 1e-5}
    trained = {id(p) for group in built.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in task.network.parameters() if p.requires_grad}
    assert isinstance(built.optimizer, torch.optim.AdamW)
    assert built.optimizer.defaults["fused"]
    assert built.accelerator.mixed_precision == "bf16"
    assert task.model.unet.is_gradient_checkpointing
    assert built.ema.decay == config.ema_decay == 0.9995
    assert task.network._compiled_call_impl is None


def test_warm_up_takes_five_percent_and_a_cosine_follows(data: Path) -> None:
    built, values, _ = engine(data, load_profile("rtx24gb").stage2)
    factor = built.scheduler.lr_lambdas[0]
    warmup = values.steps * 5 // 100
    assert factor(0) == 0
    assert factor(warmup // 2) == pytest.approx(0.5)
    assert factor(warmup) == 1
    for share in (0.25, 0.5, 0.9):
        step = round(warmup + share * (values.steps - warmup))
        assert factor(step) == pytest.approx((1 + math.cos(math.pi * share)) / 2, abs=1e-3)
    assert factor(values.steps) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("stage", "epochs"), [("stage1", 60), ("stage2", 120)])
def test_h100_takes_the_same_batch_at_once_and_compiles(data: Path, stage: str, epochs: int) -> None:
    config: StageConfig = getattr(load_profile("h100"), stage)
    built, values, task = engine(data, config)
    assert (values.batch_size, values.accumulation) == (16, 1)
    assert values.steps == epochs * SAMPLES // 16
    assert not task.model.unet.is_gradient_checkpointing
    assert task.network._compiled_call_impl is not None
    assert built.accelerator.mixed_precision == "bf16"
    assert [group["initial_lr"] for group in built.optimizer.param_groups] == [1e-4, 1e-5]


def test_samples_of_an_epoch_and_a_limit_on_steps() -> None:
    assert LoopConfig.of_stage(StageConfig(epochs=1), 1).steps == 1
    assert LoopConfig.of_stage(StageConfig(epochs=1), 1).validate_every == 1
    assert LoopConfig.of_stage(StageConfig(epochs=2), 40).steps == 5
    assert LoopConfig.of_stage(StageConfig(max_steps=7), 10**6).steps == 7
    assert LoopConfig.of_stage(StageConfig(validate_every=9), 10**6).validate_every == 9


@pytest.mark.parametrize(("fraction", "share"), [(0.5, 0.5), (0.25, 0.75), (0.0, 1.0)])
def test_an_epoch_shows_every_whole_image_once_however_many_patches_there_are(fraction: float, share: float) -> None:
    config = StageConfig(epochs=3, batch_size=2, gradient_accumulation_steps=2, patch_fraction=fraction)
    values = LoopConfig.of_stage(config, 48, 400)
    assert values.steps == 3 * 48 / (4 * share)
    assert values.validate_every == values.steps // 3
    batches = MixedBatches(48, 400, fraction, 2, seed=0)
    draws = [draw.index for number in range(2 * values.steps) for draw in batches[number]]
    assert Counter(index for index in draws if index < 48) == dict.fromkeys(range(48), 3)


def test_an_epoch_of_patches_alone_shows_every_patch_once() -> None:
    assert LoopConfig.of_stage(StageConfig(epochs=2, patch_fraction=1.0), 48, 400).steps == 2 * 400 // 16
    assert LoopConfig.of_stage(StageConfig(epochs=2), 0, 400).steps == 2 * 400 // 16


@pytest.mark.parametrize("name", ["rtx24gb", "h100"])
def test_production_takes_the_encoder_and_the_style_that_were_measured_best(name: str) -> None:
    """benchmarks/README.md, Patch encoder: with equal weights the person term works against curl."""
    profile, sample = load_profile(name), load_profile("sample")
    assert (profile.patch_encoder.person_weight, profile.patch_encoder.curl_weight) == (0.1, 0.9)
    assert profile.patch_encoder.learning_rate == 3e-4
    assert profile.style_vectors.source == sample.style_vectors.source == "combined"


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 0},
        {"gradient_accumulation_steps": 0},
        {"epochs": 0},
        {"max_steps": 0},
        {"learning_rate": 0},
        {"learning_rate_deep": -1e-5},
        {"warmup_fraction": 1.0},
        {"ema_decay": 1.0},
        {"max_grad_norm": 0},
        {"keep_checkpoints": 0},
        {"validate_every": 0},
        {"workers": -1},
        {"resolution": 8},
        {"drop_style": 0.5, "drop_identity": 0.4, "drop_both": 0.2},
    ],
    ids=str,
)
def test_impossible_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        StageConfig(**values)


def test_a_patch_batch_needs_two_people() -> None:
    with pytest.raises(ValidationError, match="people_per_batch"):
        PatchEncoderConfig(people_per_batch=1)


def test_an_empty_block_name_is_no_prefix_of_everything() -> None:
    with pytest.raises(ValidationError, match="finetune_blocks"):
        StageConfig(finetune_blocks=("",))


def test_no_more_sampler_steps_than_the_schedule_has() -> None:
    assert EvaluationConfig(steps=1000).steps == 1000
    with pytest.raises(ValidationError, match="less than or equal to 1000"):
        EvaluationConfig(steps=1001)


def test_an_anchor_to_weights_that_are_trained_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nstage2: {finetune_blocks: [mid_block], losses: {anchor: {weight: 0.1}}}\n")
    with pytest.raises(PipelineError, match=r"stage2: .*losses\.anchor needs the base's own weights") as caught:
        load_profile(path)
    assert "use losses.context" in caught.value.message
