"""Looking up registered versions: the registry's file, and whether a version's files are what was registered.

Belongs here: reading, without torch. Does not belong here: the file's format in words and changing it
(`release.registry_file`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hair_pipeline import files
from hair_pipeline.errors import PipelineError

SCHEMA = 1
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
    missing, wrong = _faults(state)
    if missing:
        raise PipelineError(f"the registry lacks {', '.join(sorted(missing))}", file=path, remedy=remedy)
    if wrong:
        raise PipelineError(f"the registry is damaged ({'; '.join(wrong)})", file=path, remedy=remedy)
    return state


class _Verdict(BaseModel):
    verdict: str


class _SignOff(BaseModel):
    reviewer: str
    decision: str


class _Record(BaseModel):
    registered_at: str
    folder: str
    files: dict[str, str]
    verdict: _Verdict
    sign_offs: list[_SignOff]


class _Event(BaseModel):
    at: str
    event: str
    version: str


class _Registry(BaseModel):
    """What is read of a registry; it may hold more."""

    production: str | None
    previous: list[str]
    versions: dict[str, _Record]
    history: list[_Event]


def _faults(state: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What a registry lacks, keys of a version behind its name, and what else is wrong with it."""
    try:
        registry = _Registry.model_validate(state)
    except ValidationError as error:
        found = [(".".join(map(str, each["loc"])), each["type"], each["msg"]) for each in error.errors()]
        return [at for at, kind, _ in found if kind == "missing"], [f"{at}: {why}" for at, _, why in found]
    named = {version for version in (registry.production, *registry.previous) if version is not None}
    return [f"versions.{version}" for version in named - registry.versions.keys()], []


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
