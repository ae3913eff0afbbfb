"""Sampling: determinism, the locked face, guidance, what outside the mask stays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module

from hair_pipeline.models.base import Base, encode
from hair_pipeline.models.inpainter import HairInpainter
from hair_pipeline.models.masks import resize_mask
from hair_pipeline.models.pipeline import HairInpaintPipeline, SchedulerName
from hair_pipeline.processing.bald import fill, make_bald
from hair_pipeline.profile import BaldConfig
from hair_pipeline_tests.models.inputs import STYLE_DIM, make_model, tiny_base

SIDE = 80
STEPS = {"resolution": 64, "num_inference_steps": 2}


def photos(count: int) -> dict[str, list[np.ndarray]]:
    random = np.random.default_rng(0)
    hair, face = np.zeros((2, SIDE, SIDE), bool)
    hair[10:35, 15:65] = True
    face[35:75, 20:60] = True
    return {
        "images": [random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(count)],
        "hair_masks": [hair] * count,
        "face_masks": [face] * count,
    }


def conditions(count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    identity = torch.randn(count, 512, generator=generator)
    return {
        "style": torch.randn(count, STYLE_DIM, generator=generator),
        "identity": torch.nn.functional.normalize(identity, dim=1),
    }


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def quiet(pipeline: HairInpaintPipeline) -> HairInpaintPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_pipeline(scheduler: SchedulerName = "ddim") -> tuple[HairInpaintPipeline, Base, HairInpainter]:
    base = tiny_base()
    model = make_model(base)
    return quiet(HairInpaintPipeline.from_inpainter(model, base, scheduler)), base, model


def largest_difference(first: list[np.ndarray], second: list[np.ndarray]) -> int:
    return max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++"])
def test_locked_latents_are_the_originals_and_bytes_outside_stay(scheduler: SchedulerName) -> None:
    pipeline, base, _ = make_pipeline(scheduler)
    inputs = photos(1)
    repaint = np.zeros((SIDE, SIDE), bool)
    repaint[5:40, 10:70] = True
    seen: list[torch.Tensor] = []
    result = pipeline(
        **inputs,
        **conditions(1),
        **STEPS,
        generator=generators(0),
        repaint_masks=[repaint],
        bald_images=[fill(inputs["images"][0], repaint, BaldConfig())],
        callback_on_step_end=lambda _pipe, _step, _t, values: seen.append(values["latents"]),
    )
    assert len(seen) == 2

    bald = fill(inputs["images"][0], repaint, BaldConfig())
    assert np.array_equal(bald[~repaint], inputs["images"][0][~repaint])
    clean = encode(base.vae, pipeline._pixels([bald], 64, torch.device("cpu")))
    mask = torch.from_numpy(inputs["face_masks"][0] & ~repaint)[None, None]
    inside = resize_mask(resize_mask(mask, (64, 64)), clean.shape[-2:], "all").bool().expand_as(clean)
    assert inside.float().mean() > 0.1
    assert torch.equal(seen[-1][inside], clean[inside])
    assert not torch.allclose(seen[-1][~inside], clean[~inside], atol=0.1)

    assert result.images[0].shape == (SIDE, SIDE, 3)
    assert np.array_equal(result.images[0][~repaint], inputs["images"][0][~repaint])
    assert not np.array_equal(result.images[0][repaint], inputs["images"][0][repaint])


def test_the_old_hair_has_no_influence_under_a_fixed_mask() -> None:
    """Not even through the face beside it: another hair under the mask gives the same pixels, bit for bit."""
    pipeline, _, _ = make_pipeline()
    inputs = photos(1)
    other = inputs["images"][0].copy()
    other[inputs["hair_masks"][0]] = np.random.default_rng(1).integers(0, 256, 3, dtype=np.uint8)
    first = pipeline(**inputs, **conditions(1), **STEPS, generator=generators(0))
    second = pipeline(**(inputs | {"images": [other]}), **conditions(1), **STEPS, generator=generators(0))
    assert largest_difference(first.raw, second.raw) == 0
    outside = ~make_bald(other, inputs["hair_masks"][0], inputs["face_masks"][0], BaldConfig())[1]
    assert largest_difference(first.images, second.images) == 0
    np.testing.assert_array_equal(second.images[0][outside], other[outside])


def test_the_locked_face_is_the_photos_whatever_a_given_bald_image_shows_there() -> None:
    pipeline, _, _ = make_pipeline()
    inputs = photos(1)
    hair = inputs["hair_masks"]
    given = {**conditions(1), **STEPS, "repaint_masks": hair}
    clean = fill(inputs["images"][0], hair[0], BaldConfig())
    noisy = np.where(hair[0][..., None], clean, clean ^ 1)  # as a JPEG would change it
    first = pipeline(**inputs, **given, bald_images=[clean], generator=generators(0))
    second = pipeline(**inputs, **given, bald_images=[noisy], generator=generators(0))
    assert largest_difference(first.raw, second.raw) == 0


def test_a_sample_does_not_depend_on_its_batch() -> None:
    pipeline, _, _ = make_pipeline()
    inputs, given = photos(2), conditions(2)
    both = pipeline(**inputs, **given, **STEPS, generator=generators(0, 1))
    alone = pipeline(
        **{name: values[1:] for name, values in inputs.items()},
        **{name: values[1:] for name, values in given.items()},
        **STEPS,
        generator=generators(1),
    )
    assert largest_difference(both.raw[1:], alone.raw) <= 1
    again = pipeline(**inputs, **given, **STEPS, generator=generators(0, 1))
    assert largest_difference(both.raw, again.raw) == 0
    with pytest.raises(ValueError, match="1 generators for 2 images"):
        pipeline(**inputs, **given, **STEPS, generator=generators(0))


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++"])
def test_threads_draw_what_one_after_another_draws(scheduler: SchedulerName) -> None:
    pipeline, _, _ = make_pipeline(scheduler)
    inputs = {**photos(1), **conditions(1), "resolution": 64}

    def draw(seed: int) -> np.ndarray:
        return pipeline(**inputs, num_inference_steps=4 + seed % 3, generator=generators(seed)).raw[0]

    seeds = range(8)
    expected = [draw(seed) for seed in seeds]
    with ThreadPoolExecutor(4) as threads:
        drawn = list(threads.map(draw, seeds))
    assert all(np.array_equal(first, second) for first, second in zip(drawn, expected, strict=True))


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_the_result_says_whether_the_networks_gave_numbers(part: str) -> None:
    pipeline, _, _ = make_pipeline()
    inputs = {**photos(1), **conditions(1), **STEPS}
    assert pipeline(**inputs, generator=generators(0)).finite == [True]
    last = pipeline.unet.conv_out if part == "unet" else pipeline.vae.decoder.conv_out
    with torch.no_grad():
        last.bias[0] = float("nan")
    assert pipeline(**inputs, generator=generators(0)).finite == [False]


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++"])
def test_save_and_load(scheduler: SchedulerName, tmp_path: Path) -> None:
    pipeline, _, model = make_pipeline(scheduler)
    pipeline.save_pretrained(tmp_path / "pipeline")
    model.save_adapters(tmp_path / "adapters")
    inputs, given = photos(1), conditions(1)
    expected = pipeline(**inputs, **given, **STEPS, generator=generators(0))
    others = (
        HairInpaintPipeline.from_pretrained(tmp_path / "pipeline"),
        HairInpaintPipeline.from_adapters(tiny_base(), tmp_path / "adapters", scheduler),
    )
    for other in others:
        found = quiet(other)(**inputs, **given, **STEPS, generator=generators(0))
        assert type(other.scheduler) is type(pipeline.scheduler)
        assert largest_difference(found.raw, expected.raw) <= 1


class AtWork(ModelHook):
    """What CPU offload does, without a GPU: of all networks only the one at work has its weights, on the "GPU"."""

    execution_device = torch.device("cpu")

    def __init__(self, module: torch.nn.Module, hooks: list[AtWork]) -> None:
        self.module, self.hooks = module, hooks
        self.weights = dict(module.state_dict())
        add_hook_to_module(module, self)
        module.to("meta")

    def pre_forward(self, module: torch.nn.Module, *args: object, **kwargs: object) -> tuple[object, object]:
        for other in self.hooks:
            if other is not self:
                other.module.to("meta")
        module.load_state_dict(self.weights, assign=True)
        return args, kwargs


def test_under_cpu_offload_the_picture_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, _, _ = make_pipeline()
    inputs = {**photos(1), **conditions(1), **STEPS}
    expected = pipeline(**inputs, generator=generators(0)).raw
    hooks: list[AtWork] = []
    hooks += [AtWork(part, hooks) for part in (pipeline.style_projection, pipeline.unet, pipeline.vae)]
    freed: list[bool] = []
    monkeypatch.setattr(pipeline, "maybe_free_model_hooks", lambda: freed.append(True))
    assert largest_difference(pipeline(**inputs, generator=generators(0)).raw, expected) == 0
    assert freed == [True]


def test_conditions_and_their_strengths() -> None:
    pipeline, _, _ = make_pipeline()
    inputs, given = photos(1), conditions(1)

    def raw(**changed: object) -> list[np.ndarray]:
        return pipeline(**inputs, **(given | STEPS | changed), generator=generators(0)).raw

    nothing = raw(style=None, identity=None)
    full = raw()
    assert largest_difference(nothing, full) > 1
    assert largest_difference(nothing, raw(style_strength=0.0, identity_strength=0.0)) == 0
    absent = torch.zeros(1, dtype=torch.bool)
    assert largest_difference(nothing, raw(style_present=absent, identity_present=absent)) == 0
    assert largest_difference(nothing, raw(style=None, identity=None, guidance_scale=1.0)) <= 1
    assert largest_difference(full, raw(guidance_scale=4.0)) > 1
    assert largest_difference(full, raw(style=None)) > 1
    assert largest_difference(full, raw(identity=None)) > 1


def test_bare_base_ignores_the_conditions() -> None:
    pipeline = quiet(HairInpaintPipeline.from_base(tiny_base()))
    inputs = photos(1)
    first = pipeline(**inputs, **conditions(1), **STEPS, generator=generators(0))
    second = pipeline(**inputs, style=None, identity=None, **STEPS, generator=generators(0))
    assert largest_difference(first.raw, second.raw) == 0


def test_wrong_resolution_is_refused() -> None:
    pipeline, _, _ = make_pipeline()
    with pytest.raises(ValueError, match="multiple"):
        pipeline(**photos(1), style=None, identity=None, resolution=100)


def test_nothing_to_repaint_changes_nothing() -> None:
    pipeline, _, _ = make_pipeline()
    inputs = photos(1)
    empty = [np.zeros((SIDE, SIDE), bool)]
    result = pipeline(
        inputs["images"], empty, empty, **conditions(1), **STEPS, repaint_masks=empty, bald_images=inputs["images"]
    )
    assert np.array_equal(result.images[0], inputs["images"][0])
