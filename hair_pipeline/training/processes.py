"""The processes of one training (torchrun): who this one is, and what they tell one another.

Belongs here: the few exchanges the loop needs; with a single process each of them does nothing. Does not belong here:
which micro-batches a process takes (`sampler.share`).

Gradients are summed once per optimizer step, not by DistributedDataParallel's hooks during backward: a process then
may have any number of micro-batches in a window, also none, and a step that is skipped is skipped by all. What is
exchanged is the trainable part alone (0.2 GB for LoRA r=64 on SD 1.5), once per accumulation window. Buffers, such as
the running statistics of BatchNorm, become those of the process that had the window's last micro-batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hair_pipeline.errors import PipelineError, TransientError

_TIMEOUT = timedelta(hours=1)
"""The others wait this long while the first one validates or saves. A process that dies is noticed at once."""

_BUCKET_BYTES = 64 << 20


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return rank() == 0


def connect() -> None:
    """Join the other processes when torchrun started this one; else nothing.

    Raises:
        PipelineError: there are fewer GPUs than processes.
        TransientError: the others cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise PipelineError(
                f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}",
                remedy="set torchrun's --nproc-per-node to the number of GPUs",
            )
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise TransientError(
            f"the processes cannot reach one another ({error})", remedy="check MASTER_ADDR, MASTER_PORT and the network"
        ) from error


def disconnect() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def hardware() -> dict[str, Any]:
    """What the training runs on, for the run's records."""
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {"processes": world(), "threads": torch.get_num_threads(), "cuda": torch.version.cuda, "gpus": gpus}


def barrier() -> None:
    """Wait for the others, on the host (so that a GPU is not kept busy by waiting)."""
    gather(None)


def gather(value: Any) -> list[Any]:
    """The small plain values of all processes, by rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors with the first process's."""
    _copy_from(0, tensors)


@torch.no_grad()
def copy_from_last(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors with the last process's: it always has the last micro-batch of a window."""
    _copy_from(world() - 1, tensors)


def _copy_from(source: int, tensors: Iterable[Tensor]) -> None:
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), source)


@torch.no_grad()
def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replace every gradient by its sum over the processes. One that no process has stays None."""
    if world() == 1 or not parameters:
        return
    present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
    dist.all_reduce(present, dist.ReduceOp.MAX)
    bucket: list[Tensor] = []
    for parameter, anywhere in zip(parameters, present.tolist(), strict=True):
        if not anywhere:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and (bucket[0].dtype != parameter.grad.dtype or _bytes(bucket) > _BUCKET_BYTES):
            _sum(bucket)
            bucket = []
        bucket.append(parameter.grad)
    if bucket:
        _sum(bucket)


def _sum(tensors: list[Tensor]) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
