"""Content versions of the weights from outside, so that others put there under the same name are noticed.

Belongs here: which weights a profile reads, and their versions. Does not belong here: reading them, and what a training
is identified by (`training.fingerprints`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import hash_bytes, hash_file, read_json, write_json
from hair_pipeline.models.weights import (
    STAND_IN_PERCEPTUAL,
    STAND_IN_RECOGNISER,
    base_files,
    base_reference,
    find_weight,
)
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings

ABSENT = "absent"
Hashes = dict[str, tuple[int, int, str]]
"""File -> size, time of modification in nanoseconds, SHA-256."""


@dataclass(frozen=True)
class _Seen:
    """What was found last time."""

    version: str = ABSENT
    files: Hashes = field(default_factory=dict)


def outside_version(name: str, settings: Settings, profile: Profile) -> str:
    """The content version of one of `OUTSIDE`: 16 hex digits, a hub id, or ABSENT.

    A file of the same size and time as last time is not read again. That weights are missing is no error here: what
    needs them says so when it is made. Until then they count as last seen, since a disk may be away for a while.
    """
    remembered = settings.processed / "weights_cache" / f"{name}.json"
    seen = _read(remembered)
    try:
        place = OUTSIDE[name](settings, profile)
    except PipelineError:
        return seen.version
    if isinstance(place, str):
        return place
    paths = _files(name, place)
    hashes = _hashes(paths, seen.files)
    parts = ((path.relative_to(place.parent).as_posix(), hashes[str(path)][2]) for path in paths)
    found = _Seen(hash_bytes(*(text for part in parts for text in part))[:16], hashes)
    if found != seen:
        write_json(remembered, asdict(found))
    return found.version


def _files(name: str, place: Path) -> list[Path]:
    if name == "inpainting_base":
        return base_files(place)
    return sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]


def _recogniser(settings: Settings, profile: Profile) -> Path:
    name = profile.models.recogniser
    return find_weight(STAND_IN_RECOGNISER if name == "stand_in" else name, settings)


def _perceptual(settings: Settings, profile: Profile) -> Path:
    kind = profile.models.perceptual
    return find_weight(STAND_IN_PERCEPTUAL if kind == "stand_in" else f"lpips_{kind}.safetensors", settings)


OUTSIDE: Mapping[str, Callable[[Settings, Profile], Path | str]] = {
    "inpainting_base": base_reference,
    "face_recogniser": _recogniser,
    "perceptual_trunk": _perceptual,
}
"""Asset -> where a profile's weights are, or their hub id."""


def _hashes(paths: list[Path], known: Hashes) -> Hashes:
    found: Hashes = {}
    for path in paths:
        state = path.stat()
        size, time, digest = known.get(str(path), (0, 0, ""))
        if (size, time) != (state.st_size, state.st_mtime_ns):
            digest = hash_file(path)
        found[str(path)] = state.st_size, state.st_mtime_ns, digest
    return found


def _read(path: Path) -> _Seen:
    try:
        kept = read_json(path)
        files = {name: (size, time, digest) for name, (size, time, digest) in kept["files"].items()}
        return _Seen(str(kept["version"]), files)
    except (PipelineError, KeyError, AttributeError, TypeError, ValueError):  # none yet, or damaged: all is read again
        return _Seen()
