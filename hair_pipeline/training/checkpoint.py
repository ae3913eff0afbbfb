"""Training checkpoints: safetensors and JSON in a folder that appears whole or not at all.

Belongs here: what a run needs to go on bit by bit as if it had never stopped, and how that reaches the disk.
Does not belong here: the exported weights that others read (`models`, `release`).
"""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import hash_file, sync_path

log = logging.getLogger(__name__)

_PREFIX = "step_"
_TEMPORARY = ".tmp-"
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError)
"""What reading a damaged checkpoint may raise."""


@dataclass
class TrainingState:
    """Everything a run needs to continue.

    Attributes:
        step: optimizer steps done.
        weights: trainable tensors (and buffers) by name.
        ema: their moving average, by the same names.
        optimizer: `Optimizer.state_dict()`.
        scheduler: `LRScheduler.state_dict()`, plain values.
        progress: plain values: counters, validation results so far.
        scaler: `GradScaler.state_dict()`, or empty.
        rng: states of every random number generator of every process, see `joined_rng`.
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
    """The states of Python's, numpy's, torch's and the current CUDA device's generator, as tensors."""
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states = {
        "python": torch.tensor([version, *internal], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*map(int, keys), position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def joined_rng(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The states of several processes under one roof, named `<rank>.<generator>`."""
    return {f"{rank}.{name}": state for rank, one in enumerate(states) for name, state in one.items()}


def restore_rng(states: Mapping[str, Tensor], rank: int = 0) -> None:
    """Put back a process's part of `joined_rng`.

    A process that was not there when the checkpoint was saved keeps its generators as they are: the samples and their
    noise do not come from them, and only dropout inside a network does.
    """
    own = {name.partition(".")[2]: state for name, state in states.items() if name.startswith(f"{rank}.")}
    if not own:
        log.info("process %d was not there when the checkpoint was saved: its generators start anew", rank)
        return
    version, *internal = own["python"].tolist()
    gauss = own["python_gauss"].tolist() if "python_gauss" in own else []
    random.setstate((version, tuple(internal), gauss[0] if gauss else None))
    *keys, position, has_gauss = own["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, float(own["numpy_gauss"].item())))
    torch.set_rng_state(own["torch"])
    if torch.cuda.is_available() and "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"])


def save(folder: Path, state: TrainingState, *, keep: int) -> Path:
    """Write `state` as `folder/step_<n>`: into a temporary folder, fsynced, then renamed; older ones are pruned.

    When the disk is full, all older checkpoints but the newest intact one give way and it is tried once more.

    Args:
        folder: the run's checkpoint folder.
        keep: how many checkpoints stay, at least 1. Those of later steps (damaged, else they would have been gone on
            from) go.

    Raises:
        PipelineError: disk full or not writable; the newest checkpoint already there is untouched.
    """
    final = folder / f"{_PREFIX}{state.step:08d}"
    try:
        _write(final, state)
    except OSError as error:
        if error.errno != errno.ENOSPC or len(_saved(folder)) < 2:
            raise _explained(error, final) from error
        log.warning("%s: the disk is full; older checkpoints give way", final)
        _keep_newest_intact(folder)
        try:
            _write(final, state)
        except OSError as again:
            raise _explained(again, final) from again
    _prune(folder, state.step, keep=keep)
    return final


def _write(final: Path, state: TrainingState) -> None:
    temporary = final.with_name(f"{_TEMPORARY}{final.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        tensors, plain = _flatten_optimizer(state.optimizer)
        files = {
            "weights.safetensors": state.weights,
            "ema.safetensors": state.ema,
            "optimizer.safetensors": tensors,
            "rng.safetensors": state.rng or joined_rng([capture_rng()]),
        }
        hashes = {name: _write_tensors(temporary / name, content) for name, content in files.items()}
        document = {
            "step": state.step,
            "scheduler": state.scheduler,
            "progress": state.progress,
            "scaler": state.scaler,
            "optimizer": plain,
            "hashes": hashes,
        }
        _write_document(temporary / "state.json", document)
        sync_path(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.replace(final)
        sync_path(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors to the disk (fsynced); the file's hash."""
    try:
        safetensors.torch.save_file({name: _plain(tensor) for name, tensor in tensors.items()}, path)
    except safetensors.SafetensorError as error:
        full = "No space left" in str(error)  # the library wraps the system's error in its own
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path)) from error
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return hash_file(path)


def _write_document(path: Path, document: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _explained(error: OSError, final: Path) -> PipelineError:
    remedy = "check the disk and its rights"
    if error.errno == errno.ENOSPC:
        remedy = "free some disk space and run the same command again: it goes on from the checkpoint before"
    return PipelineError(f"the checkpoint cannot be saved ({error})", file=final, remedy=remedy)


def _saved(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}*"))


def _prune(folder: Path, step: int, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints up to `step`, and what a killed process had begun to write."""
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    newest = f"{_PREFIX}{step:08d}"
    past = [path for path in _saved(folder) if path.name <= newest]
    for path in _saved(folder):
        if path not in past[-keep:]:
            shutil.rmtree(path, ignore_errors=True)


def _keep_newest_intact(folder: Path) -> None:
    saved = _saved(folder)
    intact = next((path for path in reversed(saved) if _is_intact(path)), None)
    for path in saved:
        if path != intact:
            shutil.rmtree(path, ignore_errors=True)


def _is_intact(folder: Path) -> bool:
    try:
        _read_document(folder)
    except _DAMAGE:
        return False
    return True


def load_newest(folder: Path) -> TrainingState | None:
    """The newest checkpoint whose files are all complete; damaged ones are skipped with a warning."""
    for candidate in reversed(_saved(folder)):
        try:
            return _load(candidate)
        except _DAMAGE as error:
            log.warning("skipping the damaged checkpoint %s (%s: %s)", candidate, type(error).__name__, error)
    return None


def _read_document(folder: Path) -> dict[str, Any]:
    """The plain part of a checkpoint whose files are all what was written; one of `_DAMAGE` is raised otherwise."""
    document: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    for name, expected in document["hashes"].items():
        if hash_file(folder / name) != expected:
            raise ValueError(f"{name} is not what was written")
    return document


def _load(folder: Path) -> TrainingState:
    document = _read_document(folder)

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
    """Split an optimizer state into tensors named `<parameter>.<key>` and plain values.

    A dictionary among the values (bitsandbytes keeps its quantisation state in one) adds a level: `<key>/<inner key>`.
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for key, value in _leaves(values):
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                plain.setdefault(str(index), {})[key] = value
    groups = [dict(group) for group in state["param_groups"]]
    return tensors, {"state": plain, "param_groups": groups}


def _leaves(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}/{inner}", leaf) for inner, leaf in value.items())
        else:
            yield key, value


def _unflatten_optimizer(tensors: Mapping[str, Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    leaves = [(int(index), key, value) for index, values in plain["state"].items() for key, value in values.items()]
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        leaves.append((int(index), key, tensor))
    for number, key, value in leaves:
        outer, nested, inner = key.partition("/")
        own = state.setdefault(number, {})
        if nested:
            own.setdefault(outer, {})[inner] = value
        else:
            own[key] = value
    groups = [
        {key: tuple(value) if key == "betas" else value for key, value in group.items()}
        for group in plain["param_groups"]
    ]
    return {"state": state, "param_groups": groups}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
