"""A text-to-image base learns to see mask and bald image, in both stages and in what is exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hair_pipeline.errors import PipelineError
from hair_pipeline.models.inpainter import HairInpainter
from hair_pipeline.models.pipeline import HairInpaintPipeline
from hair_pipeline.profile import ModelsConfig
from hair_pipeline.training import loop
from hair_pipeline.training.sampler import Draw
from hair_pipeline.training.stages import StageTask
from hair_pipeline.training.task import LoopConfig
from hair_pipeline_tests.training.tiny_stage import (
    SIDE,
    STYLE_DIM,
    only,
    stage_base,
    stage_config,
    tiny_stage,
    write_processed,
)

NEW_INPUTS = slice(4, 9)


@torch.no_grad()
def influence_of_the_inputs(task: StageTask) -> tuple[float, float]:
    """How far the prediction moves with another mask, and with another bald image."""
    batch = task.collate([task.data[Draw(0, 0)]])
    other = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(1))
    predictions = [
        task.predict(batch["noise"], batch["t"], batch | change)
        for change in ({}, {"mask": 1 - batch["mask"]}, {"masked_latents": other})
    ]
    mask, bald = ((prediction - predictions[0]).abs().max().item() for prediction in predictions[1:])
    return mask, bald


def draw(pipeline: HairInpaintPipeline) -> np.ndarray:
    hair, face = np.zeros((2, SIDE, SIDE), bool)
    hair[4:30] = True
    face[34:60, 16:48] = True
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    style, identity = torch.randn(1, STYLE_DIM, generator=generator), torch.randn(1, 512, generator=generator)
    photo = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    options = {"resolution": SIDE, "num_inference_steps": 2, "generator": generator}
    return pipeline([photo], [hair], [face], style, identity, **options).images[0]


def test_it_sees_them_after_a_few_steps_of_each_stage_and_when_exported(tmp_path: Path) -> None:
    write_processed(tmp_path / "data")
    config, before = stage_config(max_steps=4), None
    for name in ("stage1", "stage2"):
        base = stage_base(widened=True)
        task = tiny_stage(tmp_path / "data", config, name, base=base, before=before)
        at_first = task.model.unet.conv_in.weight[:, NEW_INPUTS].clone()
        assert bool((at_first != 0).any()) == (name == "stage2")  # Stage 2 goes on from Stage 1's
        loop.run(task, LoopConfig.of_stage(config, task.images), tmp_path / name)
        assert not torch.equal(task.model.unet.conv_in.weight[:, NEW_INPUTS], at_first)
        mask, bald = influence_of_the_inputs(task)
        assert mask > 1e-4
        assert bald > 1e-4 or name == "stage1"  # which has no bald images
        before = tmp_path / name / "final"
        task.model.save_adapters(before)

    assert before is not None
    trained = draw(HairInpaintPipeline.from_inpainter(task.model, base))
    HairInpaintPipeline.from_adapters(stage_base(widened=True), before).save_pretrained(tmp_path / "version")
    exported = HairInpaintPipeline.from_pretrained(tmp_path / "version")
    assert torch.equal(exported.unet.conv_in.weight, task.model.unet.conv_in.weight)
    assert np.abs(draw(exported).astype(int) - trained).max() <= 1


def test_conv_in_learns_as_fast_as_new_layers_unless_it_is_named() -> None:
    for blocks, group in (
        ((), "new"),
        (("mid_block",), "new"),
        (("conv_in", "mid_block"), "deep"),
        (("conv",), "deep"),
    ):
        model = HairInpainter.build(stage_base(widened=True), ModelsConfig(lora_rank=2), STYLE_DIM, blocks)
        found = [
            each["name"]
            for each in model.parameter_groups(1e-4, 1e-5)
            if any(parameter is model.unet.conv_in.weight for parameter in each["params"])
        ]
        assert found == [group]


def test_an_anchor_to_weights_that_are_no_more_the_bases_is_refused(tmp_path: Path) -> None:
    """`conv_in` of a widened base; blocks that Stage 1 trained, from whose adapters Stage 2 begins."""
    write_processed(tmp_path / "data")
    anchored = stage_config(losses=only("mask_l2", "anchor"))
    with pytest.raises(PipelineError, match=r"stage2\.losses\.anchor needs the base's own weights.* trains conv_in"):
        tiny_stage(tmp_path / "data", anchored, base=stage_base(widened=True))
    first = tiny_stage(tmp_path / "data", stage_config(finetune_blocks=("mid_block",)), "stage1")
    first.model.save_adapters(tmp_path / "stage1")
    with pytest.raises(PipelineError, match="trains mid_block") as caught:
        tiny_stage(tmp_path / "data", anchored, before=tmp_path / "stage1")
    assert "use stage2.losses.context" in caught.value.remedy
    assert tiny_stage(tmp_path / "data", anchored).name == "stage2"
