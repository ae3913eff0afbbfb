"""Which files of the output folders are the pipeline's own: desktops and notebooks leave theirs there, too.

Belongs here: telling by names. Does not belong here: what the files hold (`work`, `shards`).
"""

from __future__ import annotations

import re
from pathlib import Path

from hair_pipeline.files import IMAGE_EXTENSIONS

_TEMPORARY = re.compile(r"\..+\.tmp(\.\w+)?")


def images_in(folder: Path) -> list[Path]:
    """The image files of a shard's folder; none where there is no folder. Hidden files and folders are others'."""
    return [path for path in _files_in(folder) if path.suffix in IMAGE_EXTENSIONS and not path.name.startswith(".")]


def leftovers_in(folder: Path) -> list[Path]:
    """Temporary files, as `files` names them, that a killed run left in a folder."""
    return [path for path in _files_in(folder) if _TEMPORARY.fullmatch(path.name)]


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
