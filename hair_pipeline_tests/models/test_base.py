"""The base: loading, widening, encoding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from hair_pipeline.errors import PipelineError
from hair_pipeline.models.base import decode, encode, latent_factor, load_base, widen
from hair_pipeline.models.weights import ATTRIBUTE_TOKENS
from hair_pipeline_tests.models.inputs import save_base, tiny_base


def narrow_unet(width: int = 64) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=width,
        norm_num_groups=8,
    )


def test_folder_round_trip(tmp_path: Path) -> None:
    base = tiny_base()
    loaded = load_base(save_base(base, tmp_path / "some--base"), None)
    by_name = load_base("some--base", tmp_path)
    x = torch.randn(1, 9, 8, 8)
    for other in (loaded, by_name):
        assert torch.equal(other.unet(x, 3, other.null_tokens).sample, base.unet(x, 3, base.null_tokens).sample)
    assert loaded.null_tokens.shape == (1, 1, 64)
    assert loaded.noise_scheduler.config.beta_schedule == "scaled_linear"


def test_same_seed_gives_the_same_base_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = tiny_base(seed=1), tiny_base(seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.unet.conv_in.weight, second.unet.conv_in.weight)


def test_widened_unet_predicts_as_before_whatever_the_mask_says() -> None:
    unet = narrow_unet()
    x, tokens = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 64)
    with torch.no_grad():
        before = unet(x, 10, tokens).sample
        wide = widen(unet, 4)
        after = wide(torch.cat([x, torch.randn(2, 5, 8, 8)], 1), 10, tokens).sample
    assert wide.config.in_channels == 9
    assert torch.allclose(before, after, atol=1e-6)


def test_widened_base_is_saved_with_nine_channels(tmp_path: Path) -> None:
    base = tiny_base()
    base.unet = narrow_unet(width=40)  # another cross-attention width needs no code change
    loaded = load_base(save_base(base, tmp_path), None)
    assert loaded.unet.config.in_channels == 9
    assert loaded.null_tokens.shape == (1, 1, 40)
    loaded.unet.save_pretrained(tmp_path / "again")
    assert UNet2DConditionModel.from_pretrained(tmp_path / "again").conv_in.weight.shape[1] == 9


def test_unet_of_another_kind_is_refused() -> None:
    unet = narrow_unet()
    unet.register_to_config(in_channels=7)
    with pytest.raises(PipelineError, match="7 channels"):
        widen(unet, 4)


@pytest.mark.parametrize(
    ("reference", "text"),
    [("/nowhere/at/all", "no such base model"), ("stand_in_or_not", "no such base model")],
)
def test_missing_base_is_named(reference: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=text) as error:
        load_base(reference, tmp_path)
    assert reference in error.value.message


def test_incomplete_base_is_named(tmp_path: Path) -> None:
    folder = save_base(tiny_base(), tmp_path)
    for file in (folder / "vae").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(PipelineError, match="cannot be loaded"):
        load_base(folder, None)


@pytest.mark.parametrize("channels", [(8, 16), (8, 16, 16), (8, 16, 16, 16)])
def test_any_vae_factor(channels: tuple[int, ...]) -> None:
    vae: AutoencoderKL = tiny_base(vae_channels=channels).vae
    factor = latent_factor(vae)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    latents = encode(vae, images)
    assert latents.shape == (2, 4, 32 // factor, 32 // factor)
    assert torch.equal(latents, encode(vae, images))  # the mode, not a sample
    assert decode(vae, latents).shape == images.shape
    raw = vae.encode(images).latent_dist.mode()
    assert torch.allclose(latents, raw * vae.config.scaling_factor)


def test_decode_is_differentiable() -> None:
    vae = tiny_base().vae.requires_grad_(False)
    latents = torch.randn(1, 4, 4, 4, requires_grad=True)
    decode(vae, latents).mean().backward()
    assert latents.grad.abs().sum() > 0


@pytest.mark.parametrize("there", [(), ("tokenizer",), ("text_encoder",)])
def test_a_base_that_cannot_encode_the_empty_prompt_is_refused(there: tuple[str, ...], tmp_path: Path) -> None:
    folder = save_base(tiny_base(), tmp_path / "base")
    shutil.rmtree(folder / ATTRIBUTE_TOKENS)
    for part in there:
        (folder / part).mkdir()
    missing = " and no ".join(f"{part}/" for part in ("text_encoder", "tokenizer") if part not in there)
    with pytest.raises(PipelineError, match=f"the base has no {missing}: nothing tells its empty prompt") as error:
        load_base("base", tmp_path)
    assert error.value.file == str(folder)


def test_text_encoder_gives_the_null_tokens(tmp_path: Path) -> None:
    folder = save_base(tiny_base(), tmp_path)
    shutil.rmtree(folder / ATTRIBUTE_TOKENS)
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "a": 3}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77})
    )
    shape = CLIPTextConfig(
        vocab_size=4,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    encoder = CLIPTextModel(shape).eval()
    encoder.save_pretrained(folder / "text_encoder")
    loaded = load_base(folder, None)
    assert loaded.null_tokens.shape == (1, 77, 64)
    with torch.no_grad():
        expected = encoder(torch.tensor([[0] + [1] * 76]))[0]
    assert torch.allclose(loaded.null_tokens, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"addition_embed_type": "text_time"}, "addition_embed_type"),
        ({"cross_attention_dim": [64, 64, 64]}, "cross_attention_dim"),
    ],
)
def test_a_unet_of_another_family_is_refused_before_it_runs(
    changes: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = save_base(tiny_base(), tmp_path / "base")
    unet = tiny_base().unet
    unet.register_to_config(**changes)
    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", lambda *_, **__: unet)
    with pytest.raises(PipelineError, match=said):
        load_base(folder)


def test_a_base_in_the_fp16_variant_alone_is_loaded(tmp_path: Path) -> None:
    folder = save_base(tiny_base(seed=3), tmp_path / "base")
    for path in folder.glob("*/diffusion_pytorch_model.safetensors"):
        path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").touch()  # nobody asked for it
    torch.testing.assert_close(load_base(folder).unet.state_dict(), tiny_base(seed=3).unet.state_dict())
