"""Run folders: a run's id, its configuration and environment, its result, and the pointer to the current one.

Belongs here: the files of `runs/<trainer>/<run id>/` other than checkpoints. Does not belong here: training.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import hash_bytes, read_json, write_json
from hair_pipeline.settings import PROJECT_ROOT, Settings

_PACKAGES = ("hair-pipeline", "torch", "diffusers", "peft", "accelerate", "numpy", "opencv-python")


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    Attributes:
        name: the trainer.
        run_id: 12 hex digits over configuration and data.
        run_dir: the run's folder.
        final_dir: the weights that others read.
        version: content hash of `final_dir`.
        data_version: what the run was trained on.
        metrics: measured numbers; what could not be measured is missing here and explained in `notes`.
        pictures: small JPEGs.
        reused: the run had been finished before.
        notes: metric or subject -> why it is missing or limited.
    """

    name: str
    run_id: str
    run_dir: Path
    final_dir: Path
    version: str
    data_version: str
    metrics: dict[str, float]
    pictures: list[Path]
    reused: bool = False
    notes: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path, root: Path) -> None:
        """Write as JSON, with paths relative to `root`, so that a training root can be moved."""
        write_json(
            path,
            {
                "name": self.name,
                "run_id": self.run_id,
                "run_dir": self.run_dir.relative_to(root).as_posix(),
                "final_dir": self.final_dir.relative_to(root).as_posix(),
                "version": self.version,
                "data_version": self.data_version,
                "metrics": self.metrics,
                "pictures": [picture.relative_to(root).as_posix() for picture in self.pictures],
                "notes": self.notes,
            },
        )

    @classmethod
    def load(cls, path: Path, root: Path) -> TrainResult:
        """Read what `save` wrote.

        Raises:
            PipelineError: missing, or not a result.
        """
        value = read_json(path)
        try:
            return cls(
                name=value["name"],
                run_id=value["run_id"],
                run_dir=root / value["run_dir"],
                final_dir=root / value["final_dir"],
                version=value["version"],
                data_version=value["data_version"],
                metrics={name: float(number) for name, number in value["metrics"].items()},
                pictures=[root / picture for picture in value["pictures"]],
                notes=value["notes"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PipelineError("is not a training result", file=path, remedy="delete it and train again") from error


def run_id(name: str, config: Any, data_version: str) -> str:
    """12 hex digits over the trainer's name, its configuration (plain values) and its data's version."""
    return hash_bytes(name, json.dumps(config, sort_keys=True), data_version)[:12]


def environment() -> dict[str, Any]:
    """Versions, platform and git state, saved with every run."""
    versions: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changes": _git("status", "--porcelain", "--untracked-files=no"),
        "cpus": os.cpu_count(),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@contextmanager
def fresh_folder(final: Path) -> Iterator[Path]:
    """A new empty folder beside `final`, renamed to it on success (an older `final` is replaced).

    Raises:
        PipelineError: the folder cannot be written.
    """
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    old = final.with_name(f".{final.name}.{os.getpid()}.old")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if final.exists():
            final.replace(old)
        temporary.replace(final)
    except OSError as error:
        raise PipelineError(
            f"cannot be written ({error})", file=final, remedy="check the disk and its rights"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def current(name: str, settings: Settings) -> TrainResult:
    """The finished run that downstream assets use.

    Raises:
        PipelineError: this trainer has not finished yet.
    """
    path = settings.runs / name / "current.json"
    if not path.exists():
        raise PipelineError(f"{name} has not been trained", file=path, remedy=f"run: hair-pipeline train {name}")
    return TrainResult.load(path, settings.training_root)
