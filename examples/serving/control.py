"""Start, stop and restart worker and API: `python control.py restart`. In production systemd or the like does this.

Environment: SERVING_RUN (folder of process ids and logs), SERVING_PORT, and what worker and API need (README.md).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUN = Path(os.environ.get("SERVING_RUN", HERE / "run")).resolve()
PORT = os.environ.get("SERVING_PORT", "8000")
STOP_SECONDS = 30

COMMANDS = {
    "api": ["uvicorn", "api:app", "--host", "127.0.0.1", "--port", PORT],
    "worker": [
        *("celery", "-A", "tasks", "worker", "--pool", "solo", "--loglevel", "info"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ],
}
"""The API first: it ends as soon as the requests it holds are answered, which the worker before still does."""


def start(name: str) -> None:
    """In the background, in a session of its own, with its output in `<name>.log`; refused where it runs already."""
    if _running(name) is not None:  # a second worker would go on serving its version after every promotion
        sys.exit(f"{name} runs already: python control.py restart")
    RUN.mkdir(parents=True, exist_ok=True)
    with (RUN / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *COMMANDS[name]],
            cwd=HERE,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (RUN / f"{name}.pid").write_text(f"{process.pid} {_started(process.pid)}")


def stop(name: str) -> None:
    """Ask it to end (a worker finishes its request first); kill it if it does not."""
    deadline = time.monotonic() + STOP_SECONDS
    sign: signal.Signals | None = signal.SIGTERM
    while (pid := _running(name)) is not None:
        if time.monotonic() > deadline:
            sign = signal.SIGKILL
        if sign is not None:
            os.killpg(pid, sign)
            sign = None
        time.sleep(0.1)
    (RUN / f"{name}.pid").unlink(missing_ok=True)


def _running(name: str) -> int | None:
    """The id of the process that was started; None where it has ended, whoever has its id by now."""
    try:
        pid, _, started = (RUN / f"{name}.pid").read_text().partition(" ")
    except FileNotFoundError:
        return None
    return int(pid) if _started(int(pid)) == started else None


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since the machine did; None where it has ended."""
    with contextlib.suppress(ChildProcessError):  # raised where an earlier call started it
        os.waitpid(pid, os.WNOHANG)  # else it would stay as a zombie
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in ("start", "stop", "restart"):
        sys.exit("usage: python control.py start|stop|restart")
    for name in COMMANDS:
        if sys.argv[1] != "start":
            stop(name)
        if sys.argv[1] != "stop":
            start(name)


if __name__ == "__main__":
    main()
