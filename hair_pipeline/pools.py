"""Pools of processes for work on images: spawned, OpenCV on one thread in each, and never outliving who started them.

Belongs here: how such a pool is made. Does not belong here: how work is spread over it.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor

import cv2


def image_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of so many processes, for functions and arguments that can be pickled."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare)


def _prepare() -> None:
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, name="end with the parent", daemon=True).start()


def _end_with_parent() -> None:
    """Each process of a pool holds both ends of its queue: nothing else tells it that the parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
