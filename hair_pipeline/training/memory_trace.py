"""Tracing the memory of a computation without doing it: fake tensors, CUDA's autocast rules, an allocation tracker.

Belongs here: what makes a run on the CPU's fake tensors allocate what the same run allocates on a GPU.
Does not belong here: which computation is traced (`memory_plan`).

Fake `cuda` tensors need a GPU in their backward pass (pytorch issue 92627), so the tensors are fake and on the CPU, and
two things a GPU does otherwise are put in: autocast follows CUDA's lists, and attention is the fused kernel.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

GIB = 1 << 30

_BLOCK = 512
"""CUDA's allocator hands out multiples of this many bytes."""

_KEPT_IN_FLOAT = ("group_norm", "layer_norm", "softmax", "mse_loss", "cosine_similarity", "normalize", "cross_entropy")
"""Functions that CUDA's autocast computes in float32 and the CPU's does not, of those our networks call."""


def _in_float(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*args: Any, **kwargs: Any) -> Tensor:
        args, kwargs = tree_map_only(Tensor, lambda x: x.float() if x.is_floating_point() else x, (args, kwargs))
        return function(*args, **kwargs)

    return call


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> Tensor:
    """Flash attention: output and log-sum-exp are kept, never the matrix of scores."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    output, _logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask
    )
    return output


class AllocationTracker(TorchDispatchMode):
    """Counts the bytes of every storage that operators make, for as long as it lives.

    Attributes:
        now: bytes alive, in blocks of CUDA's allocator.
        peak: the most there were since the last `reset_peak`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # most calls there are; fake mode takes its long way with them
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        self.count(result)
        return result

    def count(self, values: Any) -> None:
        """Count the storages of all tensors in `values` that are not counted yet."""
        for value in tree_iter(values):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if storage not in self._known:
                    size = -(-storage.nbytes() // _BLOCK) * _BLOCK
                    self._known[storage] = size
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now


@contextlib.contextmanager
def cuda_rules(dtype: torch.dtype) -> Iterator[None]:
    """Within the context functions allocate on the CPU what they would on a GPU under `torch.autocast("cuda", dtype)`.

    Patched in rather than set as a mode: modes are off while checkpointed blocks are computed again in backward.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", _fused_attention))
        if dtype != torch.float32:
            for name in _KEPT_IN_FLOAT:
                stack.enter_context(mock.patch.object(F, name, _in_float(getattr(F, name))))
            stack.enter_context(torch.autocast("cpu", dtype))
        yield


@contextlib.contextmanager
def fake_gpu() -> Iterator[AllocationTracker]:
    """Within the context tensors are fake and every allocation is counted; see the module's docstring."""
    with FakeTensorMode(allow_non_fake_inputs=True), AllocationTracker() as tracker:
        yield tracker


def materialise(module: nn.Module) -> None:
    """Give a module without memory (device "meta") tensors of the running context, dtypes as they are."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                value = torch.empty(parameter.shape, dtype=parameter.dtype)
                part._parameters[name] = nn.Parameter(value, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
