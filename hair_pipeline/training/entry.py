"""The entry point of all training: by name, idempotent, resumable; what `hair-pipeline train` calls.

Belongs here: which trainers there are, what identifies their runs, and publishing of results. Does not belong here: the
trainers themselves, and files of a run (`runs`).
"""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import atomic_path, hash_bytes, write_json
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.fingerprints import asset_versions, catalog_version, weights_version
from hair_pipeline.training.runs import TrainResult, current, environment, fresh_folder, run_id

if TYPE_CHECKING:
    from hair_pipeline.training.context import Finished

__all__ = ["TRAINERS", "TrainResult", "current", "train"]

log = logging.getLogger(__name__)

_REVISION = "4"
"""Raised when a trainer's code changes what the same configuration gives."""


@dataclass(frozen=True)
class Trainer:
    """What `train` knows about a trainer.

    Attributes:
        module: below `hair_pipeline.training.trainers`.
        sections: profile sections that identify a run.
        data: content version of everything it reads.
        publishes: names in the final folder that are copied to `settings.base_dir`.
    """

    module: str
    sections: tuple[str, ...]
    data: Callable[[Settings, Profile], str]
    publishes: tuple[str, ...] = ()


def _catalog(settings: Settings, profile: Profile) -> str:
    del profile
    return catalog_version(read_catalog(settings.catalog_path))


def _identities(settings: Settings, profile: Profile) -> str:
    return hash_bytes(_catalog(settings, profile), asset_versions(settings, "identity_embeddings"))


def _patches(settings: Settings, profile: Profile) -> str:
    return hash_bytes(_catalog(settings, profile), asset_versions(settings, "hair_patches"))


def _stage1(settings: Settings, profile: Profile) -> str:
    from hair_pipeline.models.base import base_reference

    assets = [asset_versions(settings, name) for name in ("latents", "style_vectors")]
    base = weights_version(base_reference(settings, profile))
    return hash_bytes(_catalog(settings, profile), *assets, base, *_judges(settings, profile, "stage1"))


def _stage2(settings: Settings, profile: Profile) -> str:
    return hash_bytes(
        _stage1(settings, profile),
        asset_versions(settings, "identity_embeddings"),
        current("stage1", settings).version,
        *_judges(settings, profile, "stage2"),
    )


def _judges(settings: Settings, profile: Profile, stage: str) -> list[str]:
    """Versions of the networks behind the losses that are switched on."""
    from hair_pipeline.models.recogniser import recogniser_path
    from hair_pipeline.models.weights import STAND_IN_PERCEPTUAL, find_weight

    losses = (profile.stage1 if stage == "stage1" else profile.stage2).losses
    versions = []
    if losses.identity.weight > 0:
        path = recogniser_path(settings, profile)
        versions.append("none" if path is None else weights_version(path))
    if losses.lpips.weight > 0 or losses.gram.weight > 0:
        kind = profile.models.perceptual
        name = STAND_IN_PERCEPTUAL if kind == "stand_in" else f"lpips_{kind}.safetensors"
        versions.append(weights_version(find_weight(name, settings)))
    if losses.style.weight > 0:
        versions.append(current("style-classifier", settings).version)
    return versions


_TRAINERS: dict[str, Trainer] = {
    "inpainting-base": Trainer(
        "inpainting_base", ("base_training", "processing"), _catalog, ("inpainting", "inpainting.json")
    ),
    "face-recogniser": Trainer(
        "face_recogniser", ("base_training",), _identities, ("face_recogniser.onnx", "face_recogniser.json")
    ),
    "perceptual-trunk": Trainer(
        "perceptual_trunk", ("base_training",), _catalog, ("perceptual_alex.safetensors", "perceptual_alex.json")
    ),
    "patch-encoder": Trainer("patch_encoder", ("patch_encoder",), _patches),
    "style-classifier": Trainer("style_classifier", ("classifier",), _catalog),
    "stage1": Trainer("stage1", ("stage1", "models"), _stage1),
    "stage2": Trainer("stage2", ("stage2", "models"), _stage2),
}
TRAINERS = tuple(_TRAINERS)


def train(name: str, settings: Settings, profile: Profile, *, resume: bool = True) -> TrainResult:
    """Train a network, or return the finished run of the same configuration on the same data.

    An unfinished run of the same id goes on where it was stopped. On success the run's result is written and becomes
    the current one.

    Args:
        name: one of `TRAINERS`.
        resume: False starts over, also when the run is finished.

    Raises:
        PipelineError: unknown name, missing inputs or weights, a run that diverges, or a disk fault.
    """
    if "torch" not in sys.modules:  # threads that spin while they wait are ruinous where several processes share cores
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    trainer = _TRAINERS.get(name)
    if trainer is None:
        raise PipelineError(f"there is no trainer {name!r}", remedy=f"choose one of {', '.join(TRAINERS)}")
    sections: dict[str, Any] = {key: _plain(getattr(profile, key)) for key in trainer.sections} | {
        "revision": _REVISION
    }
    data_version = trainer.data(settings, profile)[:16]
    identity = run_id(name, sections, data_version)
    run_dir = settings.runs / name / identity
    result_path = run_dir / "result.json"
    if resume and result_path.exists():
        result = replace(TrainResult.load(result_path, settings.training_root), reused=True)
        if result.final_dir.is_dir():
            log.info("%s: run %s is finished, nothing to do", name, identity)
            _publish(trainer, result.final_dir, settings)
            result.save(settings.runs / name / "current.json", settings.training_root)
            return result
    if not resume:
        shutil.rmtree(run_dir, ignore_errors=True)
    write_json(run_dir / "config.json", {"trainer": name, "profile": profile.name} | sections)
    write_json(run_dir / "environment.json", environment() | {"data_version": data_version})

    from hair_pipeline.training.context import Context

    module = importlib.import_module(f"hair_pipeline.training.trainers.{trainer.module}")
    finished: Finished = module.run(Context(settings, profile, run_dir, resume))
    final = run_dir / "final"
    with fresh_folder(final) as folder:
        finished.save(folder)
    result = TrainResult(
        name=name,
        run_id=identity,
        run_dir=run_dir,
        final_dir=final,
        version=weights_version(final),
        data_version=data_version,
        metrics=finished.metrics,
        pictures=finished.pictures,
        notes=finished.notes,
    )
    _publish(trainer, final, settings)
    result.save(result_path, settings.training_root)
    result.save(settings.runs / name / "current.json", settings.training_root)
    return result


def _plain(section: Any) -> Any:
    return None if section is None else section.model_dump(mode="json")


def _publish(trainer: Trainer, final: Path, settings: Settings) -> None:
    """Copy what others look for in `settings.base_dir`; what this run did not make is removed there."""
    for name in trainer.publishes:
        source, goal = final / name, settings.base_dir / name
        if source.is_dir():
            with fresh_folder(goal) as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)
        elif source.is_file():
            with atomic_path(goal) as path:
                shutil.copyfile(source, path)
        else:
            goal.unlink(missing_ok=True)
