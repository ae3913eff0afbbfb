"""Where a process runs, and whether it still does: a process id alone says little once several machines share Dagster.

Belongs here: naming machines and processes, and looking for them. Does not belong here: what follows for their runs
(`instance.py`).
"""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path
from typing import Literal

from hair_pipeline.files import hash_bytes

_CLOCK_SLACK = 5.0
_MACHINE_ID = Path("/etc/machine-id")


@cache
def this_machine() -> str:
    """`<machine>.<its boot>.<process namespace>`: process ids are to be read with respect to these."""
    identity = _MACHINE_ID.read_text() if _MACHINE_ID.exists() else ""
    machine = hash_bytes(socket.gethostname(), identity)[:12]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{machine}.{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"


def standing(machine: str) -> Literal["here", "restarted", "elsewhere"]:
    """Whether the processes of a machine can be looked for here, or went with a restart of it, or neither is known."""
    if machine == this_machine():
        return "here"
    then, now = machine.split("."), this_machine().split(".")
    return "restarted" if then[0] == now[0] and then[1:2] != now[1:2] else "elsewhere"


def process_tag(pid: int | None = None) -> str | None:
    """`<machine>/<pid>:<start time>` of a living process, or None: an id alone may be used again by another one."""
    pid = pid or os.getpid()
    ticks = _start_ticks(pid)
    return None if ticks is None else f"{this_machine()}/{pid}:{ticks}"


def is_gone(tag: str) -> bool | None:
    """Is the process with this tag gone? None where its id means nothing."""
    machine, _, process = tag.rpartition("/")
    where = standing(machine)
    if where == "elsewhere":
        return None
    return where == "restarted" or process_tag(int(process.split(":")[0])) != tag


def runs_since(pid: int, then: float) -> bool:
    """Is there a process with this id here that was there then? A younger one is another with the same id."""
    ticks = _start_ticks(pid)
    return ticks is not None and _boot_time() + ticks / os.sysconf("SC_CLK_TCK") <= then + _CLOCK_SLACK


def _start_ticks(pid: int) -> int | None:
    """When a living process started, in clock ticks since the machine did."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _boot_time() -> float:
    lines = Path("/proc/stat").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("btime ")))
