"""Run folders: a run's id, its configuration and environment, its result, and the pointer to the current one.

Belongs here: the files of `runs/<trainer>/<run id>/` other than checkpoints. Does not belong here: training.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hair_pipeline.cores import cpu_count
from hair_pipeline.errors import PipelineError, TransientError
from hair_pipeline.files import hash_bytes, is_locked, one_at_a_time, read_json, says_full, write_bytes, write_json
from hair_pipeline.profile import Profile
from hair_pipeline.settings import PROJECT_ROOT, Settings

log = logging.getLogger(__name__)

PEOPLE_FILE = "people.json"
"""In a run's folder: whom it is trained on."""
_ADOPTED_FILE = "resumed.json"
"""In the folder of a run that took another one's checkpoints over: what was said about it."""
_PACKAGES = ("hair-pipeline", "torch", "diffusers", "peft", "accelerate", "numpy", "opencv-python", "bitsandbytes")


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


WITHOUT_EFFECT = frozenset(
    {
        "workers",
        "checkpoint_every",
        "keep_checkpoints",
        "validate_every",
        "validation_images",
        "gradient_norm_every",
    }
)
"""Values that change how a run is made or watched, but not what it gives: they are no part of its identity."""


@dataclass(frozen=True)
class RunPlan:
    """A run that is about to be made: what identifies it, and where it stands.

    Attributes:
        name: the trainer.
        config: the profile's sections that identify it, as plain values, and the code's revision.
        data: content versions of everything it reads, by name.
        data_version: hash over `data`.
        run_id: 12 hex digits over name, configuration and data.
    """

    name: str
    profile: str
    config: dict[str, Any]
    data: dict[str, str]
    data_version: str
    run_id: str
    root: Path
    folder: Path

    @classmethod
    def make(
        cls,
        name: str,
        sections: Sequence[str],
        settings: Settings,
        profile: Profile,
        data: dict[str, str],
        revision: str,
    ) -> RunPlan:
        """The plan of a trainer's run with the profile's present values and the present data."""
        config = {section: _plain(profile, section) for section in sections} | {"revision": revision}
        data_version = hash_bytes(json.dumps(data, sort_keys=True))[:16]
        decisive = _without(config, WITHOUT_EFFECT)
        identity = run_id(name, decisive, data_version)
        return cls(
            name, profile.name, config, data, data_version, identity, settings.training_root, settings.runs / name
        )

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.folder / self.run_id

    @property
    def _pointer(self) -> Path:
        return self.folder / "unfinished.json"

    def finished(self) -> TrainResult | None:
        """The result, when this run has been finished before."""
        path = self.run_dir / "result.json"
        result = replace(TrainResult.load(path, self.root), reused=True) if path.exists() else None
        return result if result is not None and result.final_dir.is_dir() else None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Held while the run's folder is written: by one process at a time, also on a shared disk.

        Raises:
            TransientError: another process is at it, e.g. one that was left alone and is saving.
        """
        at_it = TransientError(
            f"{self.name}: another process is training this run",
            file=self.run_dir,
            remedy="wait until it has ended, or end it; then start again",
        )
        with one_at_a_time(self.folder / f"{self.run_id}.lock", instead=at_it):
            yield

    def begin(self, *, resume: bool, force: bool, hardware: dict[str, Any]) -> str:
        """Write configuration, versions and git state into the run's folder.

        Args:
            resume: an unfinished run with another configuration or other data is refused instead of left aside.
            force: such a run's checkpoints are taken over.
            hardware: saved with the environment.

        Returns:
            What was taken over, now or before the run was stopped, in words; empty otherwise.

        Raises:
            PipelineError: the configuration or the data changed since the unfinished run.
        """
        previous = self._unfinished()
        begun = any(self.run_dir.glob("*/checkpoints/step_*"))
        if not begun:
            (self.run_dir / _ADOPTED_FILE).unlink(missing_ok=True)  # of a command killed before it took anything over
        if previous is not None and not begun:
            changes = self._changes(previous)
            if resume and not force:
                raise PipelineError(
                    f"{self.name}: configuration or data changed since the unfinished run:\n{_as_lines(changes)}",
                    file=previous,
                    remedy="put the old values back; or --resume --force to go on from it with the new ones; or leave "
                    "--resume out to begin a new run",
                )
            if force:
                _take_over(previous, self.run_dir, changes)
                log.warning(
                    "%s: going on from run %s with other values:\n%s", self.name, previous.name, _as_lines(changes)
                )
            else:
                log.warning(
                    "%s: this is a new run; run %s is unfinished and is left aside, since these differ:\n%s",
                    self.name, previous.name, _as_lines(changes),
                )  # fmt: skip
        if resume and previous is None and not begun:
            log.warning("%s: there is no unfinished run to go on from; this is a new run, from the start", self.name)
        self._warn_of_other_packages()
        document = {"trainer": self.name, "profile": self.profile} | self.config | {"data": self.data}
        write_json(self.run_dir / "config.json", document)
        write_json(self.run_dir / "environment.json", environment() | hardware | {"data_version": self.data_version})
        write_json(self._pointer, {"run_id": self.run_id})
        return _adopted(self.run_dir)

    def finish(
        self, version: str, metrics: dict[str, float], pictures: list[Path], notes: dict[str, str]
    ) -> TrainResult:
        """The result of the run, not yet written."""
        return TrainResult(
            name=self.name,
            run_id=self.run_id,
            run_dir=self.run_dir,
            final_dir=self.run_dir / "final",
            version=version,
            data_version=self.data_version,
            metrics=metrics,
            pictures=pictures,
            notes=notes,
        )

    def forget_unfinished(self) -> None:
        """The run is finished."""
        self._pointer.unlink(missing_ok=True)

    def _unfinished(self) -> Path | None:
        """The folder of another run of this trainer that was begun, has a checkpoint, and was not finished."""
        if not self._pointer.exists():
            return None
        folder = self.folder / Path(str(read_json(self._pointer).get("run_id"))).name
        if folder == self.run_dir or (folder / "result.json").exists() or not (folder / "config.json").exists():
            return None
        return folder if any(folder.glob("*/checkpoints/step_*")) else None

    def _changes(self, previous: Path) -> list[str]:
        old = read_json(previous / "config.json")
        return differences(old, {"trainer": self.name, "profile": self.profile} | self.config | {"data": self.data})

    def _warn_of_other_packages(self) -> None:
        path = self.run_dir / "environment.json"
        if path.exists() and (changes := differences(read_json(path).get("packages", {}), environment()["packages"])):
            log.warning("%s: goes on with other packages than it began with:\n%s", self.name, _as_lines(changes))


def trainers_at_work(settings: Settings) -> list[str]:
    """The trainers of which a process holds a run (`RunPlan.held`), whoever started it."""
    return sorted({path.parent.name for path in settings.runs.glob("*/*.lock") if _is_held(path)})


def _is_held(path: Path) -> bool:
    with path.open() as lock:
        return is_locked(lock)


def run_id(name: str, config: Any, data_version: str) -> str:
    """12 hex digits over the trainer's name, its configuration (plain values) and its data's version."""
    return hash_bytes(name, json.dumps(config, sort_keys=True), data_version)[:12]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two nested dictionaries, one `dotted.name: old -> new` each; decisive values only."""
    before, after = dict(_flat(old)), dict(_flat(new))
    return [
        f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in sorted(before.keys() | after.keys())
        if name.rpartition(".")[2] not in WITHOUT_EFFECT and before.get(name, "absent") != after.get(name, "absent")
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _without(values: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {
        name: _without(value, names) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if name not in names
    }


def _as_lines(changes: Sequence[str]) -> str:
    return "\n".join(f"  {change}" for change in changes)


def _take_over(previous: Path, run_dir: Path, changes: Sequence[str]) -> None:
    """Give a run another one's checkpoints and logs, as hard links where possible: no file is changed in place.

    First what is to be known of them: that they were taken over, and the names of those whom they were trained on.
    """
    adopted, before = f"went on from run {previous.name} in spite of: {'; '.join(changes)}", _adopted(previous)
    write_json(run_dir / _ADOPTED_FILE, {"resumed": f"{adopted}; that one {before}" if before else adopted})
    if (previous / PEOPLE_FILE).exists():
        write_bytes(run_dir / PEOPLE_FILE, (previous / PEOPLE_FILE).read_bytes())
    for folder in (path.parent for path in previous.glob("*/checkpoints")):
        goal = run_dir / folder.name
        shutil.rmtree(goal, ignore_errors=True)
        shutil.copytree(folder, goal, copy_function=_link)


def _adopted(run_dir: Path) -> str:
    """What `RunPlan.begin` said when the run took another one's checkpoints over; empty if it never did."""
    path = run_dir / _ADOPTED_FILE
    return str(read_json(path)["resumed"]) if path.exists() else ""


def _link(source: str, goal: str) -> None:
    try:
        os.link(source, goal)
    except OSError:
        shutil.copy2(source, goal)


def _plain(profile: Profile, section: str) -> Any:
    """Plain values of a section of the profile, or of a part of one (dotted)."""
    value: Any = profile
    for name in section.split("."):
        value = None if value is None else getattr(value, name)
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


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
        "cpus": cpu_count(),
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
    except PipelineError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not says_full(error):
            raise
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
