"""The memory plan: known peaks are found again, allocations are counted, the advice follows from the numbers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from typer.testing import CliRunner

from hair_pipeline.cli import app
from hair_pipeline.errors import PipelineError
from hair_pipeline.models.architectures import SD15_INPAINTING, Architecture
from hair_pipeline.models.perceptual import PerceptualNet, untrained_lpips
from hair_pipeline.profile import LossesConfig, LossTerm, Profile, StageConfig, load_profile
from hair_pipeline.training import memory_plan
from hair_pipeline.training.memory_plan import plan_stage, refuse_what_cannot_fit, stages_to_plan, switches
from hair_pipeline.training.memory_trace import GIB, fake_gpu, materialise
from hair_pipeline.training.validation import compare

OFF = LossTerm(weight=0.0)
NO_PIXELS = LossesConfig(identity=OFF, lpips=OFF, gram=OFF, style=OFF)
DECODED = LossesConfig(identity=OFF, gram=OFF, style=OFF, pixel_batch=2)
"""Pixels are decoded for one loss."""
ALL_OF_THE_UNET = ("conv_in", "time_embedding", "down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_out")


@cache
def stable_diffusion(finetune: tuple[str, ...]) -> memory_plan._Step:
    config = StageConfig(gradient_accumulation_steps=1, losses=NO_PIXELS, finetune_blocks=finetune)
    return memory_plan._Step(load_profile("rtx24gb"), "stage2", config, SD15_INPAINTING)


def unet_peak_gb(batch: int, checkpointed: bool, finetune: tuple[str, ...] = ()) -> float:
    """Peak of the UNet's step alone, in 10^9 bytes: no VAE, no average, no context."""
    trace = stable_diffusion(finetune).trace(batch, checkpointed, only_unet=True)
    return (trace.unet_peak - trace.judges - trace.average) / 1e9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "checkpointed", "finetune", "known"),
    [
        (4, False, (), 7.0),
        (4, True, (), 3.2),
        (16, False, (), 21.5),
        (4, False, ALL_OF_THE_UNET, 17.2),
    ],
)
def test_known_peaks_of_stable_diffusion(
    batch: int, checkpointed: bool, finetune: tuple[str, ...], known: float
) -> None:
    assert unet_peak_gb(batch, checkpointed, finetune) == pytest.approx(known, rel=0.1)


def test_allocations_are_counted_and_freed() -> None:
    with fake_gpu() as tracker:
        first = torch.empty(1024)
        view = first[:10]
        assert tracker.now == 4096
        second = first + 1
        assert tracker.now == tracker.peak == 8192
        del second
        assert (tracker.now, tracker.peak) == (4096, 8192)
        del first
        assert tracker.now == 4096  # the view still holds it
        del view
        assert tracker.now == 0
        small = torch.empty(1)
        assert tracker.now == 512
        del small


def small(losses: LossesConfig = NO_PIXELS, **stage: object) -> Profile:
    values = {"batch_size": 8, "resolution": 128, "precision": "fp32", "gradient_checkpointing": False}
    config = StageConfig(losses=losses, **(values | stage))  # type: ignore[arg-type]
    return Profile(name="small", stage1=config, stage2=config)


FEW_LAYERS = Architecture(
    vae={
        "block_out_channels": (16, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
    },
    unet={
        "in_channels": 9,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 64,
        "norm_num_groups": 16,
    },
    prompt_length=1,
)
"""Half of the sample's base: what a trace takes is the number of operations, and the plan's rules are the same."""


@pytest.fixture
def few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans reckon with `FEW_LAYERS`."""
    monkeypatch.setattr(memory_plan, "_architecture", lambda profile, settings: FEW_LAYERS)


@pytest.mark.usefixtures("few_layers")
@pytest.mark.parametrize("norms", [50, 0])
def test_parts_add_up_and_pixel_losses_cost(norms: int) -> None:
    plan = plan_stage(small(LossesConfig(pixel_batch=1), gradient_norm_every=norms), "stage2")
    assert all(value >= 0 for value in plan.parts.values())
    assert plan.parts["pixel-loss decode"] > 0
    assert plan.peak_gib == pytest.approx(sum(plan.parts.values()))
    assert plan.lines()[-1] == f"peak: {plan.peak_gib:.1f} GiB of 24.0 GiB: fits"


@pytest.mark.usefixtures("few_layers")
@pytest.mark.parametrize(("checkpointed", "batch", "fitting"), [(False, 2, 9), (True, 2, 9), (False, 12, 4)])
def test_the_largest_batch_is_what_a_direct_trace_says(checkpointed: bool, batch: int, fitting: int) -> None:
    """With decoded pixels, whose cost checkpointing changes too."""
    profile = small(DECODED, batch_size=batch, precision="bf16", gradient_norm_every=0)
    step = memory_plan._Step(profile, "stage2", profile.stage2, memory_plan._architecture(profile, None))
    fits, does_not = (step.trace(size, checkpointed).peak / GIB for size in (fitting, fitting + 1))
    assert step.line(checkpointed).largest((fits + does_not) / 2 + memory_plan.CONTEXT_GIB) == fitting


@pytest.mark.usefixtures("few_layers")
def test_the_advice_is_for_the_whole_step_with_and_without_checkpointing() -> None:
    """What the plan says about the other way is what its own plan says."""
    plain, checkpointed = (
        plan_stage(small(DECODED, gradient_checkpointing=on, gradient_accumulation_steps=3), "stage2")
        for on in (False, True)
    )
    assert f"without it the peak is {plain.peak_gib:.1f} GiB" in checkpointed.advice[1]
    assert checkpointed.advice[0] == plain.advice[0]
    assert "24 images, of all processes together" in plain.advice[0]


def test_validation_compares_one_image_at_a_time() -> None:
    """Eight take the memory of one."""
    with torch.device("meta"):
        perceptual = PerceptualNet(untrained_lpips("alex"), "random", True)
    peaks = []
    with fake_gpu() as tracker:
        materialise(perceptual)
        for size in (1, 8):
            images, mask = torch.empty(2, size, 3, 128, 128), torch.empty(size, 1, 128, 128)
            tracker.reset_peak()
            start = tracker.now
            assert len(compare(perceptual, *images, mask)) == size
            peaks.append(tracker.peak - start)
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.usefixtures("few_layers")
def test_validation_is_planned_with_its_comparison_and_the_weights_it_puts_aside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profile = small()
    step = memory_plan._Step(profile, "stage2", profile.stage2, memory_plan._architecture(profile, None))

    def compare_much(perceptual: PerceptualNet, results: torch.Tensor, *others: torch.Tensor) -> None:
        assert results.shape == (8, 3, 128, 128)
        torch.empty(1 << 30)

    usual = step.trace(8, checkpointed=False)
    monkeypatch.setattr(memory_plan, "compare", compare_much)
    much = step.trace(8, checkpointed=False).validation_peak
    assert much > usual.resident + usual.average + 4 * GIB
    assert step.trace(8, checkpointed=True).validation_peak == much  # the plan traces it once


@pytest.mark.usefixtures("few_layers")
def test_small_card_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = plan_stage(small(), "stage2")
    assert plain.parts["pixel-loss decode"] == 0

    memory = SimpleNamespace(total_memory=int((plain.peak_gib - 0.1 * plain.parts["activations"]) * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert refuse_what_cannot_fit(small(), "stage2", None, torch.device("cpu")) is None
    with pytest.raises(PipelineError, match="does not fit: ") as error:
        refuse_what_cannot_fit(small(), "stage2", None, torch.device("cuda"))
    assert "gradient_checkpointing: true" in error.value.remedy
    assert "batch_size: " in error.value.remedy
    assert "adamw8bit" in error.value.remedy


def test_the_switches_are_those_not_yet_turned() -> None:
    found = " ".join(switches(StageConfig(batch_size=4, gradient_checkpointing=False)))
    assert "batch_size: 2 with gradient_accumulation_steps: 8" in found
    assert "gradient_checkpointing: true" in found
    turned = StageConfig(batch_size=1, optimizer="adamw8bit", losses=LossesConfig(pixel_batch=1, pixel_crop=0.4))
    assert "lora_rank" in switches(turned)[0]


def test_stage1_is_planned_where_it_differs() -> None:
    profile = load_profile("rtx24gb")
    assert stages_to_plan(profile) == ("stage2",)
    wider = profile.stage1.model_copy(update={"batch_size": 8})
    assert stages_to_plan(profile.model_copy(update={"stage1": wider})) == ("stage1", "stage2")


def test_stage2_is_planned_with_the_blocks_of_stage1_in_full() -> None:
    profile = small(precision="bf16")
    profile = profile.model_copy(update={"stage1": profile.stage1.model_copy(update={"finetune_blocks": ("conv_in",)})})
    _, model, _ = memory_plan._Step(profile, "stage2", profile.stage2, FEW_LAYERS)._networks
    dtypes = {part: getattr(model.unet, part).weight.dtype for part in ("conv_in", "conv_out")}
    assert dtypes == {"conv_in": torch.float32, "conv_out": torch.bfloat16}


@pytest.mark.usefixtures("few_layers")
def test_a_plan_that_does_not_fit_is_exit_status_1(tmp_path: Path) -> None:
    profile = tmp_path / "small.yaml"
    profile.write_text(yaml.safe_dump(small().model_dump(mode="json")))
    result = CliRunner().invoke(app, ["plan-memory", "--profile", str(profile), "--vram", "1.1"])
    assert result.exit_code == 1, result.output
    assert " GiB of 1.1 GiB: does not fit: " in result.output.strip().splitlines()[-1]


@pytest.mark.slow
def test_the_command_on_the_24_gb_profile() -> None:
    result = CliRunner().invoke(app, ["plan-memory", "--profile", "rtx24gb"])
    assert result.exit_code == 0, result.output
    last = result.output.strip().splitlines()[-1]
    assert last.endswith("GiB of 24.0 GiB: fits")
    assert float(last.split()[1]) <= 21
