"""Steps end with their run: one that outlives the process of its run would keep a GPU that is given to others.

Dagster's steps are children of a fork server, so nothing tells them when the process that runs them is killed.

Belongs here: watching that process from within a step. Does not belong here: freeing what a killed run holds
(`instance.py`), and stopping a step's own child (`trainer.py`).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing import parent_process, util

from hair_pipeline.orchestration.trainer import SECONDS_TO_SAVE

SECONDS_TO_END = SECONDS_TO_SAVE + 30.0
"""A step that is left alone has its training save and ends; after this it is killed."""


def end_steps_with_their_run() -> None:
    """Let every process that is forked from this one watch the process that it works for."""
    util.register_after_fork(_watch, lambda watch: watch())


def _watch() -> None:
    threading.Thread(target=_end_with_parent, name="end with the run", daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is None:
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_END)
    os.kill(os.getpid(), signal.SIGKILL)
