"""The model: conditions, what is trained, files that stock diffusers reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, UNet2DConditionModel
from diffusers.image_processor import IPAdapterMaskProcessor
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from safetensors.torch import load_file

from hair_pipeline.errors import PipelineError
from hair_pipeline.models import adapters
from hair_pipeline.models.inpainter import FINETUNED_FILE, HairInpainter
from hair_pipeline.models.masks import for_every_level, resize_mask
from hair_pipeline.profile import ModelsConfig
from hair_pipeline_tests.models.inputs import STYLE_DIM, make_batch, make_model, tiny_base


def test_trained_parameters_are_exactly_the_adapters() -> None:
    model = make_model(perturbed=False)
    names = set(model.named_trainable())
    cross = len(adapters.cross_attention_processors(model.unet))
    lora = {name for name in names if ".lora_" in name}
    identity = {name for name in names if "_ip." in name or "encoder_hid_proj" in name}
    style = {name for name in names if name.startswith("style_projection.")}
    assert names == lora | identity | style
    assert len(lora) == 2 * cross * 4 * 2  # self- and cross-attention, four projections, A and B
    assert len(identity) == 2 * cross + 6
    assert len(style) == 7
    assert all(parameter.dtype == torch.float32 for parameter in model.named_trainable().values())


@pytest.mark.parametrize("mode", ["replace", "add"])
def test_gradients_reach_every_adapter(mode: str) -> None:
    model = make_model(style_mode=mode)
    batch = make_batch()
    batch.style_present[0] = False
    batch.predict(model).square().mean().backward()
    still = [n for n, p in model.named_trainable().items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    assert frozen == []


def test_gradients_are_the_same_under_checkpointing() -> None:
    model, batch = make_model(), make_batch()
    batch.predict(model).square().mean().backward()
    plain = {name: p.grad.clone() for name, p in model.named_trainable().items() if p.grad is not None}
    model.zero_grad()
    model.unet.enable_gradient_checkpointing()
    model.train()
    batch.predict(model).square().mean().backward()
    for name, parameter in model.named_trainable().items():
        if name in plain:
            assert torch.allclose(parameter.grad, plain[name], atol=1e-6), name


@torch.no_grad()
def test_absent_identity_has_no_influence_at_all() -> None:
    model, batch = make_model(), make_batch()
    everything = batch.predict(model)
    batch.identity_present[1] = False
    without = batch.predict(model)
    batch.identity[1] = float("nan")
    assert torch.equal(batch.predict(model), without)
    assert torch.equal(without[[0, 2]], everything[[0, 2]])  # per sample
    assert not torch.equal(without[1], everything[1])

    batch = make_batch()
    batch.face_mask[1] = 0  # no face in the picture is the same as no identity
    assert torch.equal(batch.predict(model)[1], without[1])


@torch.no_grad()
@pytest.mark.parametrize("side", [64, 32, 16, 8])
def test_identity_acts_where_the_face_mask_is(side: int) -> None:
    """At the attention outputs of every level: the identity changes them where there is face, and nowhere else."""
    model = make_model()
    module = next(
        value
        for value in model.unet.modules()
        if isinstance(getattr(value, "processor", None), IPAdapterAttnProcessor2_0)
    )
    y, x = torch.meshgrid(torch.arange(512), torch.arange(512), indexing="ij")
    face = ((x - 250) / 90).square() + ((y - 270) / 120).square() < 1
    mask = resize_mask(face[None, None], (64, 64))
    states = torch.randn(1, side * side, module.to_q.in_features)
    tokens, first, second = torch.randn(1, 2, 64), torch.randn(1, 1, 4, 64), torch.randn(1, 1, 4, 64)
    outputs = [
        module(states, encoder_hidden_states=(tokens, [identity]), ip_adapter_masks=[for_every_level(mask)])
        for identity in (first, second)
    ]
    change = (outputs[0] - outputs[1]).abs().sum(2).reshape(side, side)
    share = resize_mask(mask, (side, side))[0, 0]
    assert change[share > 0.05].min() > 0
    assert change[share == 0].max() == 0


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 48)])
def test_masks_reach_every_level_as_area_averages(height: int, width: int) -> None:
    mask = torch.rand(3, 1, height, width).round()
    for shrink in (1, 2, 4, 8):
        size = height // shrink, width // shrink
        found = IPAdapterMaskProcessor.downsample(for_every_level(mask)[:, 0], 3, size[0] * size[1], 1)
        expected = resize_mask(mask, size).flatten(1)[..., None]
        assert torch.allclose(found, expected, atol=1e-6)
        assert bool((found[expected == 0] == 0).all())


@torch.no_grad()
def test_absent_style_takes_the_null_tokens() -> None:
    model, batch = make_model(), make_batch()
    batch.style_present[:] = False
    without = batch.predict(model)
    batch.style[:] = float("nan")
    assert torch.equal(batch.predict(model), without)


@torch.no_grad()
def test_null_tokens_start_as_the_empty_prompt() -> None:
    base = tiny_base()
    base.null_tokens = torch.randn(1, 6, 64)
    for mode, expected in (("replace", base.null_tokens[:, :2]), ("add", base.null_tokens)):
        projection = make_model(_copy(base), perturbed=False, style_mode=mode).style_projection
        style = torch.randn(2, STYLE_DIM)
        absent = projection(style, torch.zeros(2, dtype=torch.bool))
        assert torch.equal(absent, expected.expand(2, -1, -1))
        present = projection(style)
        assert torch.allclose(projection(style, strength=0.5), (present + absent) / 2, atol=1e-6)
    assert torch.equal(present[:, :4], absent[:, :4])  # add: only the last N tokens change


@torch.no_grad()
def test_new_lora_changes_nothing_and_base_prediction_is_the_base() -> None:
    base = tiny_base()
    plain = tiny_base().unet
    model, batch = make_model(base, perturbed=False), make_batch()
    tokens = model.style_projection.null.expand(3, -1, -1)
    inputs = torch.cat([batch.noisy, batch.mask, batch.masked_latents], 1)
    expected = plain(inputs, batch.t, tokens).sample
    batch.style_present[:], batch.identity_present[:] = False, False
    assert torch.allclose(batch.predict(model), expected, atol=1e-5)
    for parameter in adapters.lora_parameters(model.unet):
        parameter.add_(torch.randn_like(parameter) * 0.1)
    model.style_projection.null.add_(0.5)
    before = batch.predict(model)
    assert not torch.allclose(before, expected, atol=1e-3)
    found = model.base_prediction(batch.noisy, batch.t, batch.mask, batch.masked_latents)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(batch.predict(model), before)  # LoRA is on again


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"style_mode": "add"}, {"finetune_blocks": ("mid_block", "up_blocks.1.attentions")}]
)
def test_adapters_round_trip(options: dict[str, object], tmp_path: Path) -> None:
    model, batch = make_model(**options), make_batch()
    model.save_adapters(tmp_path, {"note": "kept"})
    again = HairInpainter.from_adapters(tiny_base(), tmp_path)
    assert torch.allclose(batch.predict(again), batch.predict(model), atol=1e-6)
    assert set(again.named_trainable()) == set(model.named_trainable())
    assert json.loads((tmp_path / "adapters.json").read_text())["extra"] == {"note": "kept"}
    assert ("finetune_blocks" in options) == (tmp_path / "unet_finetuned.safetensors").exists()

    third = make_model(perturbed=False, **options)
    parameters = list(third.parameters())
    third.load_adapters(tmp_path)
    assert torch.allclose(batch.predict(third), batch.predict(model), atol=1e-6)
    assert all(a is b for a, b in zip(parameters, third.parameters(), strict=True))  # optimizers keep their parameters


@torch.no_grad()
def test_blocks_trained_in_an_earlier_stage_are_saved_on(tmp_path: Path) -> None:
    first, batch = make_model(finetune_blocks=("mid_block",)), make_batch()
    first.save_adapters(tmp_path / "stage1")
    second = make_model(perturbed=False)  # trains no block itself
    second.load_adapters(tmp_path / "stage1")
    second.save_adapters(tmp_path / "stage2")
    served = HairInpainter.from_adapters(tiny_base(), tmp_path / "stage2")
    assert torch.allclose(batch.predict(served), batch.predict(first), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("finetune_blocks", [(), ("conv_in", "mid_block")])
def test_stock_diffusers_reproduces_the_model(finetune_blocks: tuple[str, ...], tmp_path: Path) -> None:
    """As the model card says."""
    model, batch = make_model(finetune_blocks=finetune_blocks), make_batch()
    model.save_adapters(tmp_path)
    base = tiny_base()
    if finetune_blocks:
        base.unet.load_state_dict(load_file(tmp_path / FINETUNED_FILE), strict=False)
    stock = StableDiffusionInpaintPipeline(
        vae=base.vae,
        text_encoder=None,
        tokenizer=None,
        unet=base.unet,
        scheduler=base.noise_scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    stock.load_lora_weights(tmp_path, weight_name=adapters.LORA_FILE)
    stock.load_ip_adapter(str(tmp_path), subfolder="", weight_name=adapters.IP_ADAPTER_FILE, image_encoder_folder=None)
    batch.face_mask *= torch.rand_like(batch.face_mask)
    found = stock.unet(
        torch.cat([batch.noisy, batch.mask, batch.masked_latents], 1),
        batch.t,
        model.style_projection(batch.style),
        added_cond_kwargs={"image_embeds": [batch.identity[:, None]]},
        cross_attention_kwargs={"ip_adapter_masks": [for_every_level(batch.face_mask)]},
    ).sample
    assert (found - batch.predict(model)).abs().max() < 1e-5


@torch.no_grad()
def test_merged_unet_is_a_stock_unet(tmp_path: Path) -> None:
    model, batch = make_model(finetune_blocks=("conv_out",)), make_batch()
    batch.identity_present[:] = False
    expected = batch.predict(model)
    model.merged_unet().save_pretrained(tmp_path)
    stock = UNet2DConditionModel.from_pretrained(tmp_path)
    assert stock.encoder_hid_proj is None
    inputs = torch.cat([batch.noisy, batch.mask, batch.masked_latents], 1)
    assert (stock(inputs, batch.t, model.style_projection(batch.style)).sample - expected).abs().max() < 1e-5
    assert torch.equal(batch.predict(model), expected)  # the model itself is not merged


def test_parameter_groups() -> None:
    groups = {group["name"]: group for group in make_model(finetune_blocks=("mid_block",)).parameter_groups(1e-4, 1e-5)}
    assert groups["new"]["lr"] == 1e-4
    assert groups["deep"]["lr"] == 1e-5
    sizes = {name: len(group["params"]) for name, group in groups.items()}
    model = make_model()
    assert sizes["new"] == len(model.named_trainable())
    assert sizes["deep"] > 10
    assert [group["name"] for group in model.parameter_groups(1e-4, 1e-5)] == ["new"]


def test_faults_are_named(tmp_path: Path) -> None:
    model = make_model()
    with pytest.raises(PipelineError, match="no such file"):
        HairInpainter.from_adapters(tiny_base(), tmp_path / "empty")
    model.save_adapters(tmp_path)
    with pytest.raises(PipelineError, match="another"):
        make_model(lora_rank=8).load_adapters(tmp_path)
    (tmp_path / adapters.IP_ADAPTER_FILE).unlink()
    with pytest.raises(PipelineError, match=adapters.IP_ADAPTER_FILE):
        HairInpainter.from_adapters(tiny_base(), tmp_path)
    with pytest.raises(PipelineError, match="names no parameter"):
        make_model(finetune_blocks=("no_such_block",))
    base = tiny_base()
    HairInpainter.build(base, ModelsConfig(lora_rank=2), STYLE_DIM)
    with pytest.raises(ValueError, match="already carries"):
        HairInpainter.build(base, ModelsConfig(lora_rank=2), STYLE_DIM)


def test_half_precision_base_keeps_its_dtype_and_adapters_are_fp32() -> None:
    base = tiny_base()
    base.unet.to(torch.bfloat16)
    model, batch = make_model(base), make_batch()
    assert all(p.dtype == torch.float32 for p in model.named_trainable().values())
    assert model.unet.conv_in.weight.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        loss = batch.predict(model).float().square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.named_trainable().values() if p.grad is not None)


def test_what_is_trained_keeps_its_weights_where_the_rest_is_halved() -> None:
    model = make_model(finetune_blocks=("conv_in", "mid_block"))
    before = {name: parameter.clone() for name, parameter in model.named_trainable().items()}
    model.cast_frozen(torch.bfloat16)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_trainable().items())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_blocks_that_only_the_stage_before_trained_are_handed_on_exactly(tmp_path: Path) -> None:
    make_model(finetune_blocks=("mid_block",)).save_adapters(tmp_path / "stage1")
    model = make_model()
    model.cast_frozen(torch.bfloat16)
    model.load_adapters(tmp_path / "stage1")
    model.save_adapters(tmp_path / "stage2")
    before, after = (load_file(tmp_path / stage / FINETUNED_FILE) for stage in ("stage1", "stage2"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert model.unet.conv_in.weight.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert make_batch().predict(model).isfinite().all()


def _copy(base):  # type: ignore[no-untyped-def]
    fresh = tiny_base()
    fresh.null_tokens = base.null_tokens
    return fresh
