"""A quick look at an input folder: has anything come or gone since last time? For sensors, which look every minute.

Belongs here: names and times of folders. Does not belong here: files' contents (`fingerprint`, the full look).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from hair_pipeline.errors import PipelineError
from hair_pipeline.inputs.inventory import is_system_folder
from hair_pipeline.settings import Settings

MAX_FOLDERS = 20_000
"""A level of folders is opened only while no more than this many have been: K-Hairstyle's 4,347 people stand in about
9,000 folders, while training_face writes two folders for every photo, of which the root's own time and count say
enough."""


def inputs_state(settings: Settings) -> str:
    """`folder_state` of both inputs as one text.

    Raises:
        PipelineError: an input's root is missing.
    """
    return folder_state(settings.k_hairstyle_root) + "-" + folder_state(settings.training_face_root)


def folder_state(root: Path) -> str:
    """16 hex digits that change when a file or folder is added, removed or renamed under `root`.

    Looks at the time of each folder, level by level, never at a file. So it does not see a file that is overwritten in
    place, nor changes below the levels that are opened (`MAX_FOLDERS`): the full fingerprint does.

    Raises:
        PipelineError: `root` is missing or may not be read.
    """
    total = hashlib.sha256()
    opened = 0
    base = os.fspath(root)
    level = [base]
    while level and opened + len(level) <= MAX_FOLDERS:
        below: list[str] = []
        for folder in level:
            try:
                folders = [entry.path for entry in os.scandir(folder) if _is_folder(entry)]
                time = os.stat(folder).st_mtime_ns  # noqa: PTH116 (thousands of folders, every minute)
            except OSError as error:
                if folder != base:
                    continue  # gone in between, or unreadable: the catalog will say so
                raise PipelineError(
                    f"the folder cannot be read ({error.strerror})",
                    file=root,
                    remedy="check HAIR_PIPELINE_K_HAIRSTYLE_ROOT, HAIR_PIPELINE_TRAINING_FACE_ROOT and the permissions",
                ) from error
            total.update(f"{folder[len(base) :]}\0{time}\0{len(folders)}\n".encode("utf-8", "surrogateescape"))
            below += folders
        opened += len(level)
        level = sorted(below)
    total.update(str(len(level)).encode())
    return total.hexdigest()[:16]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir() and not is_system_folder(entry.name)
    except OSError:  # a link that leads to itself
        return False
