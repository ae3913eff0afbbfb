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

SCHEMA = 1
KEYS = {"production", "previous", "versions", "history"}
RECORD_KEYS = {"registered_at", "folder", "files", "verdict", "sign_offs"}
RESTORE = (
    "restore them from a backup; or, while it is the current Stage 2 model, materialise exported_weights, which makes "
    "them again as they were"
)
ROLL_BACK = "; or go back to the version before: uv run hair-pipeline registry rollback"


def backup_of(path: Path) -> Path:
    """The copy beside a registry's file."""
    return path.with_name(f"{path.name}.bak")


def read_registry(path: Path) -> dict[str, Any]:
    """The registry's file; of a pipeline that has released nothing, an empty one.

    Raises:
        PipelineError: the file is not a registry of this schema, lacks a key, or is gone while its copy is there.
    """
    remedy = f"restore it: cp {backup_of(path)} {path}"
    if not path.exists():
        if backup_of(path).exists():
            raise PipelineError("the registry is gone, its copy is there", file=path, remedy=remedy)
        return {"schema": SCHEMA, "production": None, "previous": [], "versions": {}, "history": []}
    state = files.read_json(path, remedy=remedy)
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        raise PipelineError(f"is not a registry of schema {SCHEMA}", file=path, remedy=remedy)
    if missing := _missing(state):
        raise PipelineError(f"the registry lacks {', '.join(missing)}", file=path, remedy=remedy)
    return state


def _missing(state: Mapping[str, Any]) -> list[str]:
    """Keys that a registry must have and this one has not, sorted; those of a version behind its name."""
    if missing := KEYS - state.keys():
        return sorted(missing)
    named = {version for version in (state["production"], *state["previous"]) if version is not None}
    absent = [f"versions.{version}" for version in named - state["versions"].keys()]
    for version, record in state["versions"].items():
        absent += [f"versions.{version}.{key}" for key in RECORD_KEYS - record.keys()]
    return sorted(absent)


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
