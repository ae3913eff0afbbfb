"""Keeping the terminal readable while many processes write to it.

Belongs here: sending the output of steps to one file, and reading its newest line. Does not belong here: what is shown
(`progress.py`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_TAIL_BYTES = 2_000
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@contextmanager
def output_to(log: Path) -> Iterator[TextIO]:
    """Send the stdout and stderr of this process and its children to `log`, emptied; yields the real stderr."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    log.write_bytes(b"")
    # each write goes to the end, whatever another command that began meanwhile did to the file
    with log.open("ab") as file, os.fdopen(os.dup(2), "w", encoding="utf-8") as terminal:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield terminal
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            for descriptor in saved:
                os.close(descriptor)


def newest_progress(log: Path) -> str:
    """The newest progress bar (a line with `it/s`, `step/s` or the like) at the end of `log`, or an empty string."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [_ESCAPES.sub("", line).strip() for line in re.split(r"[\r\n]+", text)]
    bars = [line for line in lines if "%|" in line]
    return bars[-1] if bars else ""
