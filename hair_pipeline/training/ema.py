"""Exponential moving average of the trainable weights, used for validation and export.

Belongs here: the average and swapping it in. Does not belong here: saving it (`checkpoint`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class Ema:
    """Average of named tensors, kept in fp32 (integers are copied).

    The decay warms up as min(decay, (1 + n) / (10 + n)) after n updates, as in TensorFlow's and diffusers' averages,
    so that short runs are not dominated by the first weights.

    Args:
        state: the tensors to average, by name; read at every update, never replaced.
        decay: the final decay, in [0, 1).
    """

    def __init__(self, state: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._source = dict(state)
        self.shadow = {name: _copy(tensor) for name, tensor in state.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current tensors."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        shadows, sources = [], []
        for name, tensor in self._source.items():
            if tensor.is_floating_point():
                shadows.append(self.shadow[name])
                sources.append(tensor.detach().float())
            else:
                self.shadow[name].copy_(tensor)
        if shadows:
            torch._foreach_lerp_(shadows, sources, 1 - decay)

    @torch.no_grad()
    def load(self, shadow: Mapping[str, Tensor], updates: int) -> None:
        """Restore a saved average."""
        for name, tensor in shadow.items():
            self.shadow[name].copy_(tensor)
        self.updates = updates

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the source tensors hold the average; afterwards their own values again, bit by bit."""
        kept = {name: tensor.detach().clone() for name, tensor in self._source.items()}
        try:
            self.copy_to_source()
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self._source.items():
                    tensor.copy_(kept[name])

    @torch.no_grad()
    def copy_to_source(self) -> None:
        """Write the average into the source tensors for good."""
        for name, tensor in self._source.items():
            tensor.copy_(self.shadow[name])


def _copy(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    return copy.float() if copy.is_floating_point() else copy
