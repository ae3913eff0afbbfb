"""The one exception a user is meant to read: what is wrong, with which file, and what to do.

Belongs here: errors that cross floors. Does not belong here: per-image faults, which become a
counted row with a reason (`hair_pipeline.inputs.reasons`) instead of an exception.
"""

from __future__ import annotations

import errno
from pathlib import Path

_LASTING_ERRNOS = frozenset(
    {
        errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
        errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ELOOP, errno.EINVAL,
    }
)  # fmt: skip
_BUSY_ANSWERS = frozenset({408, 425, 429})
"""Answers of HTTP servers, besides 5xx, after which trying again is right."""


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


class TransientError(PipelineError):
    """A fault that passes by itself: the same command may succeed later, and goes on where it stopped."""


class ReleaseRefused(PipelineError):
    """The release gate's no to a model: the evidence was read and speaks against it. An outcome, not a fault."""


def is_transient(error: BaseException) -> bool:
    """Whether the same work may succeed if it is tried again later.

    Yes for `TransientError`, for faults of network and storage (`OSError`, the transport errors of the hub's client),
    and for servers that are busy or broken. No for any other `PipelineError` (only a person can mend an input), for
    files that are missing, forbidden or do not fit, and for everything else: a fault of the code comes back.
    """
    if isinstance(error, PipelineError):
        return isinstance(error, TransientError)
    answer = getattr(error, "response", error)  # of requests and huggingface_hub; urllib's has the code itself
    status = getattr(answer, "status_code", None) or getattr(answer, "code", None)
    if isinstance(status, int):
        return status >= 500 or status in _BUSY_ANSWERS
    if isinstance(error, OSError):
        return error.errno not in _LASTING_ERRNOS
    return any(
        base.__name__ == "TransportError" and base.__module__.startswith("httpx") for base in type(error).__mro__
    )
