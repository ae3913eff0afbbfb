"""LoRA and IP-Adapter FaceID on a diffusers UNet, in the file formats that stock diffusers reads.

Belongs here: adding, reading, writing and merging of adapters (IP-Adapter: Ye et al. 2023, LoRA: Hu et al. 2021).
Does not belong here: what the conditions mean and when they are present (`inpainter`).
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import torch
from diffusers import StableDiffusionInpaintPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers, convert_unet_state_dict_to_peft
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import atomic_path
from hair_pipeline.inputs.training_face import EMBEDDING_DIM

LORA_FILE = "pytorch_lora_weights.safetensors"
IP_ADAPTER_FILE = "ip_adapter.safetensors"
_FIRST_TOKEN_SIZE = 0.1
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
IDENTITY_DIM = EMBEDDING_DIM
"""Of the conditions: training_face's embeddings."""
IDENTITY_TOKENS = 4
_HIDDEN_MULTIPLE = 2

_PROJECTION_NAMES = {"ff.net.0.proj.": "proj.0.", "ff.net.2.": "proj.2.", "norm.": "norm."}
"""diffusers' names inside IPAdapterFaceIDImageProjection -> names in the published FaceID files."""


def cross_attention_processors(unet: UNet2DConditionModel) -> dict[str, nn.Module]:
    """The cross-attention layers' processors, in the order in which IP-Adapter files number them (1, 3, 5 ...)."""
    return {name: value for name, value in unet.attn_processors.items() if not name.endswith("attn1.processor")}


def add_ip_adapter(unet: UNet2DConditionModel) -> None:
    """Install a new IP-Adapter FaceID: 512-vector -> 4 tokens; keys and values start as copies of the text's.

    The tokens start at a tenth of their usual size: an identity that means nothing yet is noise to the face.

    Call it before `add_lora`: it casts and rebuilds parts of the UNet.
    """
    dim = unet.config.cross_attention_dim
    hidden = _HIDDEN_MULTIPLE * IDENTITY_DIM
    first, second, norm = nn.Linear(IDENTITY_DIM, hidden), nn.Linear(hidden, dim * IDENTITY_TOKENS), nn.LayerNorm(dim)
    nn.init.constant_(norm.weight, _FIRST_TOKEN_SIZE)
    image_proj = {
        f"{prefix}.{name}": value.detach()
        for prefix, module in (("proj.0", first), ("proj.2", second), ("norm", norm))
        for name, value in module.state_dict().items()
    }
    ip_adapter = {}
    for index, name in enumerate(cross_attention_processors(unet)):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        for part in ("to_k", "to_v"):
            linear = getattr(attention, part)
            ip_adapter[f"{2 * index + 1}.{part}_ip.weight"] = (
                getattr(linear, "base_layer", linear).weight.detach().clone()
            )
    load_ip_adapter_state(unet, {"image_proj": image_proj, "ip_adapter": ip_adapter})


def load_ip_adapter_state(unet: UNet2DConditionModel, state: dict[str, dict[str, Tensor]]) -> None:
    """Install an IP-Adapter from its published form {"image_proj": ..., "ip_adapter": ...}."""
    logger = logging.getLogger("diffusers.models.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # diffusers warns of an empty list here
    try:
        unet._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
    finally:
        logger.setLevel(level)


def ip_adapter_state(unet: UNet2DConditionModel) -> dict[str, dict[str, Tensor]]:
    """The installed IP-Adapter in its published form, fp32 on the CPU; the inverse of `load_ip_adapter_state`."""
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    image_proj = {}
    for name, value in projection.state_dict().items():
        old = next(prefix for prefix in _PROJECTION_NAMES if name.startswith(prefix))
        image_proj[name.replace(old, _PROJECTION_NAMES[old], 1)] = _plain(value)
    ip_adapter = {}
    for index, processor in enumerate(cross_attention_processors(unet).values()):
        for part in ("to_k_ip", "to_v_ip"):
            ip_adapter[f"{2 * index + 1}.{part}.weight"] = _plain(getattr(processor, part)[0].weight)
    return {"image_proj": image_proj, "ip_adapter": ip_adapter}


@torch.no_grad()
def set_ip_adapter_state(unet: UNet2DConditionModel, state: dict[str, dict[str, Tensor]]) -> None:
    """Copy a state of the same shapes into the installed IP-Adapter; its parameters stay the same objects."""
    projection = dict(unet.encoder_hid_proj.image_projection_layers[0].named_parameters())
    for new, old in _PROJECTION_NAMES.items():
        for name, value in state["image_proj"].items():
            if name.startswith(old):
                projection[name.replace(old, new, 1)].copy_(value)
    for index, processor in enumerate(cross_attention_processors(unet).values()):
        for part in ("to_k_ip", "to_v_ip"):
            getattr(processor, part)[0].weight.copy_(state["ip_adapter"][f"{2 * index + 1}.{part}.weight"])


def has_ip_adapter(unet: UNet2DConditionModel) -> bool:
    """Whether an IP-Adapter is installed."""
    return unet.encoder_hid_proj is not None


def ip_adapter_parameters(unet: UNet2DConditionModel) -> list[nn.Parameter]:
    """The parameters of the installed IP-Adapter."""
    parts = [unet.encoder_hid_proj, *cross_attention_processors(unet).values()]
    return [parameter for part in parts for parameter in part.parameters()]


def save_ip_adapter(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write `ip_adapter.safetensors`, which stock `load_ip_adapter(..., image_encoder_folder=None)` reads."""
    flat = {f"{group}.{name}": value for group, part in ip_adapter_state(unet).items() for name, value in part.items()}
    with atomic_path(folder / IP_ADAPTER_FILE) as path:
        save_file(flat, path)


def read_ip_adapter(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Read `ip_adapter.safetensors`."""
    state: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    with safe_open(existing(folder / IP_ADAPTER_FILE), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
            group, name = key.split(".", 1)
            state[group][name] = file.get_tensor(key)
    return state


def add_lora(unet: UNet2DConditionModel, rank: int) -> None:
    """Add LoRA (alpha = rank, so that its scale is 1) to every attention projection; it starts without effect."""
    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(LORA_TARGETS))
    )


def lora_parameters(unet: UNet2DConditionModel) -> list[nn.Parameter]:
    """The parameters of the LoRA."""
    return [parameter for name, parameter in unet.named_parameters() if ".lora_" in name]


def save_lora(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors` in diffusers' key format, which stock `load_lora_weights` reads."""
    state = {name: _plain(value) for name, value in get_peft_model_state_dict(unet).items()}
    with atomic_path(folder / LORA_FILE) as path:
        StableDiffusionInpaintPipeline.save_lora_weights(
            path.parent, unet_lora_layers=convert_state_dict_to_diffusers(state), weight_name=path.name
        )


def load_lora(unet: UNet2DConditionModel, folder: Path) -> None:
    """Read `pytorch_lora_weights.safetensors` into the LoRA added by `add_lora` with the same rank.

    Raises:
        PipelineError: it belongs to another UNet or rank.
    """
    path = existing(folder / LORA_FILE)
    with safe_open(path, framework="pt") as file:
        state = {key.removeprefix("unet."): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state = convert_unet_state_dict_to_peft(state)
    wanted = {name: value.shape for name, value in get_peft_model_state_dict(unet).items()}
    if {name: value.shape for name, value in state.items()} != wanted:
        raise PipelineError(
            "the LoRA was trained on another UNet or with another rank",
            file=path,
            remedy="use the base model and lora_rank it was trained with",
        )
    set_peft_model_state_dict(unet, state)


def merged_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A plain UNet with the LoRA added to the weights and without the IP-Adapter; the given UNet is untouched.

    It saves with `save_pretrained` and loads with stock `UNet2DConditionModel.from_pretrained`.
    """
    state = plain_state(unet)
    for name, module in unet.named_modules():
        if isinstance(module, LoraLayer):
            for adapter in module.active_adapters:
                weight = state[f"{name}.weight"]
                delta = module.get_delta_weight(adapter)
                state[f"{name}.weight"] = (weight.float() + delta.float()).to(weight.dtype)
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    with torch.device("meta"):
        plain = UNet2DConditionModel.from_config(config | {"encoder_hid_dim_type": None})
    plain.load_state_dict({name: value.detach().clone() for name, value in state.items()}, assign=True)
    return plain.eval().requires_grad_(False)


def plain_state(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The UNet's own weights under their stock names: no LoRA, no IP-Adapter."""
    return {
        plain_name(name): value
        for name, value in unet.state_dict().items()
        if ".lora_" not in name and ".processor." not in name and not name.startswith("encoder_hid_proj")
    }


def plain_name(name: str) -> str:
    """A parameter's name in the stock UNet, without the wrapper LoRA puts around a layer."""
    return name.replace(".base_layer.", ".")


def existing(path: Path) -> Path:
    """The path itself.

    Raises:
        PipelineError: there is no such file.
    """
    if not path.is_file():
        raise PipelineError(
            "no such file", file=path, remedy="give a folder of saved adapters, or train the stage again"
        )
    return path


@contextlib.contextmanager
def lora_disabled(unet: UNet2DConditionModel):  # type: ignore[no-untyped-def]
    """Within the block the UNet computes without its LoRA."""
    unet.disable_adapters()
    try:
        yield
    finally:
        unet.enable_adapters()


def _plain(value: Tensor) -> Tensor:
    return value.detach().float().cpu().contiguous().clone()
