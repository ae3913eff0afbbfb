"""The one exception a user is meant to read: what is wrong, with which file, and what to do.

Belongs here: errors that cross floors. Does not belong here: per-image faults, which become a
counted row with a reason (`hair_pipeline.inputs.reasons`) instead of an exception.
"""

from __future__ import annotations

from pathlib import Path


class PipelineError(Exception):
    """A fault that stops a command, said in one message: what, where, remedy.

    Args:
        what: what is wrong, with the offending value.
        file: the file or folder concerned, if there is one.
        remedy: what the reader can do about it.
    """

    def __init__(self, what: str, *, file: Path | str | None = None, remedy: str = "") -> None:
        self.what = what
        self.file = None if file is None else str(file)
        self.remedy = remedy
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The full text shown to the user."""
        where = f"{self.file}: " if self.file else ""
        remedy = f"\n  -> {self.remedy}" if self.remedy else ""
        return f"{where}{self.what}{remedy}"
