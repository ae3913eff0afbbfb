"""Versions small enough for tests, registered and signed off, and a command for a deployment to run."""

import sys
from pathlib import Path
from typing import Any

from hair_pipeline.files import hash_file
from hair_pipeline.release.registry_file import Registry

APPROVE = {"verdict": "approve", "id": "t1", "against": "untrained base", "against_first": True}
OPPONENTS = {"b": "a", "c": "b", "new": "old"}
"""Whom a version won against."""


def approval(version: str) -> dict[str, Any]:
    return APPROVE | {"against_version": OPPONENTS.get(version, "base inpainting")}


def make_version(root: Path, version: str, verdict: dict[str, Any] | None = None) -> Registry:
    folder = root / "checkpoints" / "versions" / version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_bytes(version.encode() * 100)
    registry = Registry(root / "registry" / "registry.json")
    hashes = {"weights.safetensors": hash_file(folder / "weights.safetensors")}
    registry.register(version, folder, hashes, approval(version) if verdict is None else verdict)
    return registry


def signed(root: Path, version: str) -> Registry:
    registry = make_version(root, version)
    registry.sign_off(version, "Kim", "approve", "seams fine")
    return registry


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)
