"""From a style vector to the UNet's cross-attention tokens, with learned tokens for "no style".

Belongs here: the projection and its null tokens. Does not belong here: where style vectors come from.
"""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

StyleMode = Literal["replace", "add"]


class StyleProjection(ModelMixin, ConfigMixin):
    """LayerNorm and a two-layer MLP from a style vector to N tokens of the UNet's cross-attention width.

    `replace`: the N tokens stand in for the text. `add`: they are added to the last N tokens of the encoded empty
    prompt (the first one, which the text encoder's attention leans on, stays as it is whenever L > N).
    A sample without a style gets the null tokens alone; they are learned, and start as the base's empty prompt.

    Args:
        style_dim: S, length of the style vector.
        token_dim: D, cross-attention width of the UNet.
        tokens: N.
        mode: "replace" or "add".
        null_length: L, tokens of the encoded empty prompt.
    """

    @register_to_config
    def __init__(
        self, style_dim: int, token_dim: int, tokens: int = 4, mode: StyleMode = "replace", null_length: int = 1
    ) -> None:
        super().__init__()
        self.tokens, self.mode = tokens, mode
        length = tokens if mode == "replace" else max(tokens, null_length)
        self.norm = nn.LayerNorm(style_dim)
        self.hidden = nn.Linear(style_dim, 2 * token_dim)
        self.out = nn.Linear(2 * token_dim, tokens * token_dim)
        self.null = nn.Parameter(torch.zeros(1, length, token_dim))

    def start_from(self, null_tokens: Tensor) -> None:
        """Set the null tokens (and, for `replace`, the output's bias) to the encoded empty prompt (1, L, D)."""
        length = self.null.shape[1]
        repeats = max(0, length - null_tokens.shape[1])
        filled = torch.cat([null_tokens, null_tokens[:, -1:].expand(-1, repeats, -1)], 1)[:, :length]
        with torch.no_grad():
            self.null.copy_(filled)
            if self.mode == "replace":
                self.out.bias.copy_(filled.flatten())

    def forward(self, style: Tensor, present: Tensor | None = None, strength: float = 1.0) -> Tensor:
        """Style vectors -> tokens.

        Args:
            style: (B, S).
            present: (B,) bool; False takes the null tokens, whatever stands in `style` (also NaN). None: all present.
            strength: 0 gives the null tokens, 1 the style's, between them a blend.

        Returns:
            (B, N, D) for `replace`, (B, max(N, L), D) for `add`.
        """
        if present is not None:
            style = torch.where(present[:, None], style, torch.zeros_like(style))
        tokens = self.out(nn.functional.gelu(self.hidden(self.norm(style))))
        tokens = tokens.unflatten(1, (self.tokens, -1))
        null = self.null.expand(len(style), -1, -1)
        if self.mode == "add":
            untouched = null.shape[1] - self.tokens
            tokens = null + nn.functional.pad(tokens, (0, 0, untouched, 0))
        if strength != 1:
            tokens = null + strength * (tokens - null)
        return tokens if present is None else torch.where(present[:, None, None], tokens, null.to(tokens.dtype))
