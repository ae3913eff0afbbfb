"""Child processes that train, to be killed or to train together: forks of a server that has imported everything."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training import checkpoint, processes, tally
from hair_pipeline.training.context import Context
from hair_pipeline.training.loop import LoopResult
from hair_pipeline.training.task import LoopConfig, Task

_PRELOADED = [
    __name__,
    "hair_pipeline_tests.training.tiny_tasks",
    "hair_pipeline_tests.training.tiny_stage",
    "hair_pipeline.training.entry",
    *(f"hair_pipeline.training.trainers.{name}" for name in ("patch_encoder", "style_classifier", "stage1", "stage2")),
]


def start(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Call a function in a child process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    child = context.Process(target=function, args=arguments)
    child.start()
    return child


def together(world: int, function: Callable[..., Any], *arguments: Any) -> list[int | None]:
    """Call a function in `world` processes that know one another; their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [start(_ranked, rank, world, port, function, arguments) for rank in range(world)]
    for child in children:
        child.join(600)
    return [child.exitcode for child in children]


def _ranked(rank: int, world: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes.connect()
    function(*arguments)
    processes.disconnect()


def train_and_die(name: str, settings: Settings, profile: Profile, deadly_event: int | None, journal: Path) -> None:
    """Train with a checkpoint every two steps of two micro-batches each; SIGKILL itself at an event.

    Events, counted from 1 and written to `journal` as they come, are micro-batches (`micro`: the second one of a window
    is still missing; `window`: it is complete) and files of a checkpoint (`file`: before, `written`: after).
    """
    from hair_pipeline.training.entry import train

    torch.set_num_threads(1)
    count, micro = 0, 0

    def event(kind: str) -> None:
        nonlocal count
        count += 1
        with journal.open("a") as file:
            file.write(kind + "\n")
        if count == deadly_event:
            os.kill(os.getpid(), signal.SIGKILL)

    def counting(method: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            event(before)
            result = method(*arguments)
            event(after)
            return result

        return call

    def add(own: tally.Tally, *arguments: Any) -> None:
        nonlocal micro
        micro += 1
        original_add(own, *arguments)
        event("micro" if micro % 2 else "window")

    def loop(own: Context, task: Task, config: LoopConfig) -> LoopResult:
        return original_loop(own, task, dataclasses.replace(config, accumulation=2, checkpoint_every=2))

    original_add, original_loop = tally.Tally.add, Context.loop
    tally.Tally.add, Context.loop = add, loop  # type: ignore[method-assign]
    checkpoint._write_tensors = counting(checkpoint._write_tensors, "file", "written")
    checkpoint._write_document = counting(checkpoint._write_document, "file", "written")
    try:
        train(name, settings, profile)
    except BaseException:
        journal.with_suffix(".error").write_text(traceback.format_exc())
        raise
