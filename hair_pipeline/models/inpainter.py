"""The model that is trained: a 9-channel UNet with style tokens, a face-masked identity branch and LoRA.

Belongs here: composition of base and adapters, presence of the conditions, which parameters are trained, saving.
Does not belong here: sampling (`pipeline`), losses (`losses`), file formats of single adapters (`adapters`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import atomic_path, read_json, write_json
from hair_pipeline.models import adapters
from hair_pipeline.models.base import Base
from hair_pipeline.models.masks import for_every_level
from hair_pipeline.models.style_projection import StyleProjection
from hair_pipeline.profile import ModelsConfig

log = logging.getLogger(__name__)

ADAPTERS_FILE = "adapters.json"
FINETUNED_FILE = "unet_finetuned.safetensors"
STYLE_FOLDER = "style_projection"
_INPUT_BLOCK = "conv_in"


def predict(
    unet: UNet2DConditionModel,
    noisy: Tensor,
    t: Tensor,
    mask: Tensor,
    masked_latents: Tensor,
    tokens: Tensor,
    identity: Tensor,
    identity_mask: Tensor,
) -> Tensor:
    """One call of a UNet with an IP-Adapter.

    Args:
        noisy, masked_latents: (B, C, h, w).
        t: (B,) timesteps.
        mask: (B, 1, h, w), 1 = repaint.
        tokens: (B, N, D).
        identity: (B, 512), finite.
        identity_mask: (B, 1, h, w): the identity's influence at every latent cell, and averaged at the coarser levels;
            where a sample's mask is 0 throughout, its identity has none at all.
    """
    prediction: Tensor = unet(
        torch.cat([noisy, mask.to(noisy.dtype), masked_latents.to(noisy.dtype)], 1),
        t,
        encoder_hidden_states=tokens.to(noisy.dtype),
        added_cond_kwargs={"image_embeds": [identity.to(noisy.dtype)[:, None]]},
        cross_attention_kwargs={"ip_adapter_masks": [for_every_level(identity_mask)]},
        return_dict=False,
    )[0]
    return prediction


class HairInpainter(nn.Module):
    """A UNet of the base with its adapters. Make one with `build` (new adapters) or `from_adapters` (saved ones).

    Trained: LoRA, IP-Adapter, style projection and the UNet parameters named by `finetune_blocks`, all in fp32; on a
    widened base also `conv_in`, without which it would never see mask and bald image. Everything else is frozen and
    keeps the base's dtype, except for blocks that a stage before trained: they stay in fp32.
    """

    def __init__(
        self, base: Base, style_projection: StyleProjection, finetune_blocks: tuple[str, ...], rank: int
    ) -> None:
        super().__init__()
        self.unet = base.unet
        self.empty_prompt = base.null_tokens  # not a buffer: it belongs to the base, and is not saved
        self.style_projection = style_projection
        self.finetune_blocks = finetune_blocks
        self.changed_blocks = finetune_blocks  # also those of loaded adapters: they must be saved on
        if base.widened and not f"{_INPUT_BLOCK}.".startswith(finetune_blocks):
            self.changed_blocks = (*finetune_blocks, _INPUT_BLOCK)
        self.lora_rank = rank
        self._select_trainable()

    @classmethod
    def build(
        cls, base: Base, config: ModelsConfig, style_dim: int, finetune_blocks: Sequence[str] = ()
    ) -> HairInpainter:
        """Put new adapters on a base. The base's UNet is taken over and changed in place.

        Args:
            style_dim: length of the style vectors.
            finetune_blocks: prefixes of UNet parameter names to train in full, e.g. "mid_block" or "up_blocks.1".
        """
        if adapters.has_ip_adapter(base.unet):
            raise ValueError("this UNet already carries adapters; load a fresh base")
        if base.widened:
            log.info("a text-to-image base: conv_in is trained too, since its inputs for mask and bald image are new")
        projection = StyleProjection(
            style_dim,
            base.unet.config.cross_attention_dim,
            config.style_tokens,
            config.style_mode,
            base.null_tokens.shape[1],
        )
        projection.start_from(base.null_tokens)
        return cls._assemble(base, projection, tuple(finetune_blocks), config.lora_rank)

    @classmethod
    def from_adapters(cls, base: Base, folder: Path) -> HairInpainter:
        """Put saved adapters on a fresh base. The base's UNet is taken over and changed in place.

        Raises:
            PipelineError: the folder is incomplete, or its adapters belong to another base.
        """
        card = read_json(folder / ADAPTERS_FILE)
        projection = _load_projection(folder)
        width = base.unet.config.cross_attention_dim
        if projection.config.token_dim != width:
            raise PipelineError(
                f"the adapters are for a cross-attention width of {projection.config.token_dim}, this base has {width}",
                file=folder,
                remedy="use the base model they were trained on",
            )
        model = cls._assemble(base, projection, tuple(card["finetune_blocks"]), int(card["lora_rank"]))
        model.load_adapters(folder)
        return model

    @classmethod
    def _assemble(
        cls, base: Base, projection: StyleProjection, finetune_blocks: tuple[str, ...], rank: int
    ) -> HairInpainter:
        adapters.add_ip_adapter(base.unet)  # before the LoRA: it casts and rebuilds parts of the UNet
        adapters.add_lora(base.unet, rank)
        return cls(base, projection, finetune_blocks, rank)

    def _select_trainable(self) -> None:
        """Freeze the base, then switch on exactly the parts that are trained.

        Order matters: freezing after the LoRA was added would freeze it silently, so everything is frozen first
        and each part is checked to be there.
        """
        self.unet.requires_grad_(False)
        parts = {
            "LoRA": adapters.lora_parameters(self.unet),
            "IP-Adapter": adapters.ip_adapter_parameters(self.unet),
            "style projection": list(self.style_projection.parameters()),
        }
        for prefix in self.changed_blocks:
            parts[f"finetune_blocks {prefix!r}"] = [
                parameter for name, parameter in self._base_parameters() if name.startswith(prefix)
            ]
        for part, parameters in parts.items():
            if not parameters:
                raise PipelineError(f"{part} names no parameter of the UNet", remedy="correct finetune_blocks")
            for parameter in parameters:
                parameter.requires_grad_(True)
                parameter.data = parameter.data.float()

    def cast_frozen(self, dtype: torch.dtype) -> None:
        """Give what is not trained another dtype; casting the base beforehand would round what is trained as well."""
        for parameter in self.unet.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)

    def keep_exact(self, blocks: Sequence[str]) -> None:
        """Give UNet blocks fp32 whether trained or not: rounded, a stage before would have trained them in vain."""
        for name, parameter in self._base_parameters():
            if name.startswith(tuple(blocks)):
                parameter.data = parameter.data.float()

    def _base_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """(stock name, parameter) of the UNet's own parameters."""
        skipped = (".lora_", ".processor.")
        return [
            (adapters.plain_name(name), parameter)
            for name, parameter in self.unet.named_parameters()
            if not name.startswith("encoder_hid_proj") and not any(part in name for part in skipped)
        ]

    def forward(
        self,
        noisy: Tensor,
        t: Tensor,
        mask: Tensor,
        masked_latents: Tensor,
        style: Tensor,
        identity: Tensor,
        face_mask: Tensor,
        *,
        style_present: Tensor,
        identity_present: Tensor,
    ) -> Tensor:
        """Predict the noise (or v, as the base's scheduler says).

        Args:
            noisy: (B, C, h, w) noised latents.
            t: (B,) integer timesteps.
            mask: (B, 1, h, w), 1 = repaint.
            masked_latents: (B, C, h, w), latents of the bald image.
            style: (B, S) style vectors; rows that are not present may hold anything.
            identity: (B, 512) unit vectors; rows that are not present may hold anything.
            face_mask: (B, 1, h, w) in [0, 1], area-averaged to the latents' size: where the identity acts.
            style_present, identity_present: (B,) bool. An absent style takes the learned null tokens; an absent
                identity has no influence at all.

        Returns:
            (B, C, h, w).
        """
        identity = torch.where(identity_present[:, None], identity, torch.zeros_like(identity))
        identity_mask = face_mask * identity_present[:, None, None, None].to(face_mask.dtype)
        tokens = self.style_projection(style, style_present)
        return predict(self.unet, noisy, t, mask, masked_latents, tokens, identity, identity_mask)

    @torch.no_grad()
    def base_prediction(self, noisy: Tensor, t: Tensor, mask: Tensor, masked_latents: Tensor) -> Tensor:
        """What the base predicts for its empty prompt, (B, C, h, w), for the anchor loss: no LoRA, style or identity.

        Blocks trained in full are not undone.
        """
        tokens = self.empty_prompt.to(noisy.device).expand(len(noisy), -1, -1)
        identity = noisy.new_zeros(len(noisy), adapters.IDENTITY_DIM)
        with adapters.lora_disabled(self.unet):
            return predict(self.unet, noisy, t, mask, masked_latents, tokens, identity, torch.zeros_like(mask))

    def named_trainable(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def parameter_groups(self, lr: float, lr_deep: float) -> list[dict[str, Any]]:
        """Optimizer groups: `new` (LoRA, IP-Adapter, style projection, a widened base's `conv_in`) at `lr`, `deep`
        (`finetune_blocks`) at `lr_deep`.
        """
        deep = {id(p) for name, p in self._base_parameters() if name.startswith(self.finetune_blocks or ("\0",))}
        trained = list(self.named_trainable().values())
        groups = [
            {"name": "new", "params": [p for p in trained if id(p) not in deep], "lr": lr},
            {"name": "deep", "params": [p for p in trained if id(p) in deep], "lr": lr_deep},
        ]
        return [group for group in groups if group["params"]]

    def save_adapters(self, folder: Path, extra: dict[str, Any] | None = None) -> None:
        """Write the trained weights: files that stock diffusers reads, and `adapters.json` (written last).

        Args:
            extra: plain values to keep in `adapters.json`, under "extra".
        """
        adapters.save_lora(self.unet, folder)
        adapters.save_ip_adapter(self.unet, folder)
        self.style_projection.save_pretrained(folder / STYLE_FOLDER)
        if self.changed_blocks:
            with atomic_path(folder / FINETUNED_FILE) as path:
                save_file(self._finetuned(), path)
        card = {
            "lora_rank": self.lora_rank,
            "finetune_blocks": list(self.changed_blocks),
            "style_dim": self.style_projection.config.style_dim,
            "style_tokens": self.style_projection.config.tokens,
            "style_mode": self.style_projection.config.mode,
            "extra": extra or {},
        }
        write_json(folder / ADAPTERS_FILE, card)

    def _finetuned(self) -> dict[str, Tensor]:
        return {
            name: parameter.detach().cpu().contiguous().clone()
            for name, parameter in self._base_parameters()
            if name.startswith(self.changed_blocks)
        }

    @torch.no_grad()
    def load_adapters(self, folder: Path) -> None:
        """Read what `save_adapters` wrote into this equally built model.

        Raises:
            PipelineError: a file is missing, or belongs to another model.
        """
        card = read_json(folder / ADAPTERS_FILE)
        projection = _load_projection(folder)
        try:
            self.style_projection.load_state_dict(projection.state_dict())
        except RuntimeError as error:
            raise PipelineError(
                "the style projection has another shape",
                file=folder,
                remedy="use the configuration it was trained with",
            ) from error
        adapters.load_lora(self.unet, folder)
        state = adapters.read_ip_adapter(folder)
        wanted = adapters.ip_adapter_state(self.unet)
        for group, values in wanted.items():
            if {n: v.shape for n, v in values.items()} != {n: v.shape for n, v in state[group].items()}:
                raise PipelineError(
                    "the IP-Adapter belongs to another UNet",
                    file=folder / adapters.IP_ADAPTER_FILE,
                    remedy="use the base model it was trained on",
                )
        adapters.set_ip_adapter_state(self.unet, state)
        self.changed_blocks = tuple(dict.fromkeys((*self.changed_blocks, *card["finetune_blocks"])))
        if card["finetune_blocks"]:
            self.keep_exact(card["finetune_blocks"])
            own = dict(self._base_parameters())
            for name, value in load_file(adapters.existing(folder / FINETUNED_FILE)).items():
                own[name].copy_(value)

    def merged_unet(self) -> UNet2DConditionModel:
        """A plain UNet with LoRA and fine-tuned blocks in its weights and without IP-Adapter; this model stays."""
        return adapters.merged_unet(self.unet)


def _load_projection(folder: Path) -> StyleProjection:
    if not (folder / STYLE_FOLDER).is_dir():
        raise PipelineError(
            "no such folder",
            file=folder / STYLE_FOLDER,
            remedy="give a folder of saved adapters, or train the stage again",
        )
    return StyleProjection.from_pretrained(folder / STYLE_FOLDER, local_files_only=True, use_safetensors=True)
