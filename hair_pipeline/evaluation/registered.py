"""Looking up registered versions: the registry's file, and whether a version's files are what was registered.

Belongs here: reading, without torch. Does not belong here: the file's format in words and changing it
(`release.registry_file`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hair_pipeline import files
from hair_pipeline.errors import PipelineError

RESTORE = (
    "restore them from a backup; or, while it is the current Stage 2 model, materialise exported_weights, which makes "
    "them again as they were"
)
ROLL_BACK = "; or go back to the version before: uv run hair-pipeline registry rollback"


def damaged_files(folder: Path, hashes: Mapping[str, str]) -> list[str]:
    """Files of a version that are gone or whose content is not what was registered.

    Args:
        folder: the version's. hashes: path relative to `folder` -> SHA-256.
    """
    paths = {name: files.confined(folder, name) for name in hashes}
    return [name for name, path in paths.items() if not path.is_file() or files.hash_file(path) != hashes[name]]


def require_intact(registry: Mapping[str, Any], version: str, folder: Path) -> None:
    """Check the files of a registered version; this reads all of them.

    Raises:
        PipelineError: one is gone or changed.
    """
    damaged = damaged_files(folder, registry["versions"][version]["files"])
    if damaged:
        raise PipelineError(
            f"files of version {version} are gone or changed since they were registered: {', '.join(damaged)}",
            file=folder,
            remedy=RESTORE + (ROLL_BACK if registry["production"] == version else ""),
        )
