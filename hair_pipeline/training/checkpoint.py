"""Training checkpoints: safetensors and JSON in a folder that appears whole or not at all.

Belongs here: what a run needs to go on bit by bit as if it had never stopped, and how that reaches the disk.
Does not belong here: the exported weights that others read (`models`, `release`).
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import hash_bytes, write_bytes, write_json

log = logging.getLogger(__name__)

_PREFIX = "step_"
_TEMPORARY = ".tmp-"


@dataclass
class TrainingState:
    """Everything a run needs to continue.

    Attributes:
        step: optimizer steps done.
        weights: trainable tensors (and buffers) by name.
        ema: their moving average, by the same names.
        optimizer: `Optimizer.state_dict()`.
        scheduler: `LRScheduler.state_dict()`, plain values.
        progress: plain values: counters, sampler position, validation results so far.
        scaler: `GradScaler.state_dict()`, or empty.
        rng: states of every random number generator, see `capture_rng`.
    """

    step: int
    weights: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    progress: dict[str, Any]
    scaler: dict[str, Any] = field(default_factory=dict)
    rng: dict[str, Tensor] = field(default_factory=dict)


def capture_rng() -> dict[str, Tensor]:
    """The states of Python's, numpy's, torch's and every CUDA device's generator, as integer tensors."""
    version, internal, gauss = random.getstate()
    if gauss is not None:
        raise RuntimeError("random.gauss() keeps half a state; use another generator in training")
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states = {
        "python": torch.tensor([version, *internal], dtype=torch.int64),
        "numpy": torch.tensor([*map(int, keys), position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_rng(states: Mapping[str, Tensor]) -> None:
    """Put back what `capture_rng` returned; CUDA states of absent devices are left out."""
    version, *internal = states["python"].tolist()
    random.setstate((version, tuple(internal), None))
    *keys, position, has_gauss = states["numpy"].tolist()
    np.random.set_state(
        ("MT19937", np.array(keys, np.uint32), position, has_gauss, float(states["numpy_gauss"].item()))
    )
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"cuda.{i}" in states:
                torch.cuda.set_rng_state(states[f"cuda.{i}"], i)


def save(folder: Path, state: TrainingState, *, keep: int) -> Path:
    """Write `state` as `folder/step_<n>`: into a temporary folder, fsynced, then renamed; older ones are pruned.

    Args:
        folder: the run's checkpoint folder.
        keep: how many checkpoints stay.

    Raises:
        PipelineError: disk full or not writable; the checkpoints already there are untouched.
    """
    final = folder / f"{_PREFIX}{state.step:08d}"
    temporary = folder / f"{_TEMPORARY}{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        tensors, plain = _flatten_optimizer(state.optimizer)
        files = {
            "weights.safetensors": state.weights,
            "ema.safetensors": state.ema,
            "optimizer.safetensors": tensors,
            "rng.safetensors": state.rng or capture_rng(),
        }
        hashes = {}
        for name, content in files.items():
            data = safetensors.torch.save({key: _plain(tensor) for key, tensor in content.items()})
            write_bytes(temporary / name, data)
            hashes[name] = hash_bytes(data)
        document = {
            "step": state.step,
            "scheduler": state.scheduler,
            "progress": state.progress,
            "scaler": state.scaler,
            "optimizer": plain,
            "hashes": hashes,
        }
        write_json(temporary / "state.json", document)
        _sync_folder(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.replace(final)
        _sync_folder(folder)
    except OSError as error:
        raise PipelineError(f"the checkpoint cannot be saved ({error})", file=final, remedy="check the disk") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in sorted(folder.glob(f"{_PREFIX}*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_newest(folder: Path) -> TrainingState | None:
    """The newest checkpoint whose files are all complete; damaged ones are skipped with a warning."""
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for candidate in sorted(folder.glob(f"{_PREFIX}*"), reverse=True):
        try:
            return _load(candidate)
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            log.warning("skipping the damaged checkpoint %s (%s: %s)", candidate, type(error).__name__, error)
    return None


def _load(folder: Path) -> TrainingState:
    document = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    for name, expected in document["hashes"].items():
        if hash_bytes((folder / name).read_bytes()) != expected:
            raise ValueError(f"{name} is not what was written")

    def read(name: str) -> dict[str, Tensor]:
        return safetensors.torch.load_file(folder / name)

    return TrainingState(
        step=document["step"],
        weights=read("weights.safetensors"),
        ema=read("ema.safetensors"),
        optimizer=_unflatten_optimizer(read("optimizer.safetensors"), document["optimizer"]),
        scheduler=document["scheduler"],
        progress=document["progress"],
        scaler=document["scaler"],
        rng=read("rng.safetensors"),
    )


def _flatten_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer state into tensors named `<parameter>.<key>` and plain values."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                plain.setdefault(str(index), {})[key] = value
    groups = [dict(group) for group in state["param_groups"]]
    return tensors, {"state": plain, "param_groups": groups}


def _unflatten_optimizer(tensors: Mapping[str, Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in plain["state"].items()}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    groups = [
        {key: tuple(value) if key == "betas" else value for key, value in group.items()}
        for group in plain["param_groups"]
    ]
    return {"state": state, "param_groups": groups}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
