"""What a run waits for: places in the pools that other runs hold.

Belongs here: watching the pools for a run, and saying who holds them. Does not belong here: which runs are dead
(`instance.py`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg

from hair_pipeline.orchestration.compute_tags import CPU_POOL, GPU_POOL
from hair_pipeline.orchestration.instance import free_dead_runs
from hair_pipeline.orchestration.leases import SECONDS_TO_EXPIRE, lease_holder

log = logging.getLogger(__name__)

LOOK_EVERY = 5.0


@contextmanager
def pools_watched(instance: dg.DagsterInstance, run_id: str, tell: Callable[[str, str], None]) -> Iterator[None]:
    """While the block executes a run: free what dead runs hold when a step of it waits, and say what it waits for.

    Args:
        tell: called from another thread with the step and the reason, once for each reason.
    """
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(instance, run_id, tell, ended), name="pools", daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


def _watch(instance: dg.DagsterInstance, run_id: str, tell: Callable[[str, str], None], ended: threading.Event) -> None:
    told: dict[str, str] = {}
    while not ended.wait(LOOK_EVERY):
        try:
            now = waits(instance, run_id)
            if now and free_dead_runs(instance):
                now = waits(instance, run_id)
        except Exception as error:  # the storage is busy: there will be another look
            log.warning("cannot look at the pools: %s", error)
            continue
        for step in [step for step, reason in now.items() if told.get(step) != reason]:
            tell(step, now[step])
        told = now


def waits(instance: dg.DagsterInstance, run_id: str) -> dict[str, str]:
    """Step of the run -> what it waits for, where other runs hold that."""
    found = {}
    for pool in (GPU_POOL, CPU_POOL):
        info = instance.event_log_storage.get_concurrency_info(pool)
        holders = sorted((info.active_run_ids | info.assigned_run_ids) - {run_id})
        for step in info.pending_steps:
            if holders and step.run_id == run_id and step.assigned_timestamp is None:
                found[step.step_key] = _reason(instance, pool, holders)
    return found


def _reason(instance: dg.DagsterInstance, pool: str, holders: list[str]) -> str:
    held = ", ".join(f"run {run_id[:8]} ({lease_holder(instance, run_id)})" for run_id in holders)
    return (
        f"waiting for the pool {pool}, held by {held}; it is free when that has ended, at most "
        f"{SECONDS_TO_EXPIRE / 60:.1f} minutes after it was killed; by hand: in the UI, Runs, Terminate"
    )
