"""Stopping on SIGTERM: at the end of the running step, or at once where nothing can be lost.

Belongs here: the signal. Does not belong here: saving (`loop`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopNow(Exception):
    """SIGTERM came inside `Stop.at_once`."""


class Stop:
    """Whether SIGTERM has come.

    Attributes:
        requested: it has.
    """

    def __init__(self) -> None:
        self.requested = False
        self._at_once = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it SIGTERM raises `StopNow` instead of waiting for the end of the step.

        For work whose loss costs nothing, such as a validation after the state was saved.
        """
        self._at_once = True
        try:
            if self.requested:
                raise StopNow
            yield
        finally:
            self._at_once = False

    def _handle(self, *_: object) -> None:
        self.requested = True
        if self._at_once:
            self._at_once = False
            raise StopNow


def ignore_sigterm(worker: int) -> None:
    """For a DataLoader's workers (`worker_init_fn`): they are needed until the step is finished and saved.

    A signal to the whole process group (by a cluster's scheduler, by `timeout`) reaches them too. They end with the
    loader, or when their parent is gone.
    """
    del worker
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def stop_on_sigterm() -> Iterator[Stop]:
    """Listen for SIGTERM (only possible in the main thread; elsewhere nothing is ever requested)."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.signal(signal.SIGTERM, stop._handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)
