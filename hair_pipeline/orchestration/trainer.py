"""Running the training command as a child of a step: under torchrun if need be, and never outliving the step.

Training always runs as a subprocess, so that GPU memory is freed, the code server stays light, and the same command
works by hand: `hair-pipeline train NAME`.

Belongs here: starting, stopping and understanding the child. Does not belong here: what it trains.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import dagster as dg

from hair_pipeline.errors import PipelineError, TransientError
from hair_pipeline.settings import Settings

COMMAND = ("-m", "hair_pipeline.cli", "train")
ERROR_FILE_VARIABLE = "HAIR_PIPELINE_ERROR_FILE"
SHARED_TRAINERS = frozenset({"stage1", "stage2"})
"""The trainers whose steps are large enough to be shared by several processes."""

SECONDS_TO_SAVE = 240.0
"""A training that is told to stop finishes its step and saves; after this it is killed."""

_C_LIBRARY = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def train_in_child(
    name: str, context: dg.AssetExecutionContext, settings: Settings, options: Sequence[str] = ()
) -> None:
    """Run `hair-pipeline train NAME OPTIONS` to its end, with a Dagster Pipes session that rank 0 reports to.

    When the step is cancelled, or its process dies, the child gets SIGTERM: it saves, and the next try goes on there.

    Raises:
        PipelineError: the command failed; the message is its own, of the process that failed first.
        TransientError: as above, where trying again may help: it was stopped from outside, or said so itself.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        dg.open_pipes_session(context, dg.PipesTempFileContextInjector(), dg.PipesTempFileMessageReader()) as session,
    ):
        error_file = Path(folder) / "error.json"
        process = subprocess.Popen(
            train_command(name, settings, options),
            env={
                **os.environ,
                **session.get_bootstrap_env_vars(),
                ERROR_FILE_VARIABLE: str(error_file),
                "PET_LOG_DIR": folder,  # torchrun leaves its folder behind, also an empty one
            },
            start_new_session=True,  # Ctrl-C in a terminal reaches the step alone, which stops this child properly
            preexec_fn=_stop_when_the_parent_dies,
        )
        try:
            code = process.wait()
        except BaseException:
            context.log.info("the training is told to save and to stop")
            stop(process)
            raise
        if code != 0:
            raise _what_happened(name, code, error_file)


def train_command(name: str, settings: Settings, options: Sequence[str] = ()) -> list[str]:
    """The command that trains, under torchrun where several processes are asked for."""
    command = [*COMMAND, name, *options]
    machines = shlex.split(settings.torchrun_options)
    if name not in SHARED_TRAINERS or (settings.training_processes == 1 and not machines):
        return [sys.executable, *command]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *(machines or ["--standalone"])]
    return [*torchrun, "--nproc-per-node", str(settings.training_processes), *command]


def stop(process: subprocess.Popen) -> None:
    """SIGTERM, time to save, then SIGKILL for it and all its children: nothing of it keeps the GPU."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(SECONDS_TO_SAVE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _stop_when_the_parent_dies() -> None:
    """Runs in the child before it becomes the command; Linux then signals it when the step's process is gone."""
    _C_LIBRARY.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _what_happened(name: str, code: int, error_file: Path) -> PipelineError:
    if error_file.exists():
        said = json.loads(error_file.read_text(encoding="utf-8"))
        return (TransientError if said["transient"] else PipelineError)(said["message"])
    if -code in (signal.SIGKILL, signal.SIGTERM):
        return TransientError(
            f"{name} was ended by {signal.Signals(-code).name} from outside",
            remedy="if it happens again, look whether the machine runs out of memory (dmesg)",
        )
    return PipelineError(f"{name} ended with status {code}", remedy="see the step's stderr")
