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
    "worker": [
        *("celery", "-A", "tasks", "worker", "--pool", "solo", "--loglevel", "info"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ],
    "api": ["uvicorn", "api:app", "--host", "127.0.0.1", "--port", PORT],
}


def start(name: str) -> None:
    """In the background, in a session of its own, with its output in `<name>.log`."""
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
    (RUN / f"{name}.pid").write_text(str(process.pid))


def stop(name: str) -> None:
    """Ask it to end (a worker finishes its request first); kill it if it does not."""
    path = RUN / f"{name}.pid"
    if not path.exists():
        return
    pid = int(path.read_text())
    path.unlink()
    deadline = time.monotonic() + STOP_SECONDS
    sign: signal.Signals | None = signal.SIGTERM
    while _alive(pid):
        if time.monotonic() > deadline:
            sign = signal.SIGKILL
        if sign is not None:
            os.killpg(pid, sign)
            sign = None
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    """Whether it runs; one that has ended and was started by this very process is reaped."""
    with contextlib.suppress(ChildProcessError):  # raised where an earlier call started it
        os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


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
