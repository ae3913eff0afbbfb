"""The entry point of all training: by name, idempotent, resumable; what `hair-pipeline train` calls.

Belongs here: which trainers there are, what identifies their runs, and their finish. Does not belong here: the trainers
themselves, and files of a run (`runs`).
"""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hair_pipeline.errors import PipelineError, TransientError
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.profile import STAGE_MODELS, Profile, StageConfig
from hair_pipeline.settings import Settings
from hair_pipeline.training.fingerprints import asset_versions, base_version, catalog_version, weights_version
from hair_pipeline.training.people import record_people
from hair_pipeline.training.runs import RunPlan, TrainResult, current, fresh_folder

if TYPE_CHECKING:
    from hair_pipeline.training.context import Finished

__all__ = ["TRAINERS", "TrainResult", "current", "train"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trainer:
    """What `train` knows about a trainer.

    Attributes:
        module: below `hair_pipeline.training.trainers`.
        sections: profile sections (or values in them, dotted) that identify a run.
        data: content versions of everything it reads, by name.
        revision: raised when the trainer's code changes what the same configuration gives.
    """

    module: str
    sections: tuple[str, ...]
    data: Callable[[Settings, Profile], dict[str, str]]
    revision: str = "4"


def _catalog(settings: Settings, profile: Profile) -> dict[str, str]:
    del profile
    return {"catalog": catalog_version(settings)}


def _identities(settings: Settings, profile: Profile) -> dict[str, str]:
    return _vae(settings, profile) | _assets(settings, "identity_embeddings")


def _vae(settings: Settings, profile: Profile) -> dict[str, str]:
    return _catalog(settings, profile) | {"vae": current("inpainting-vae", settings).version}


def _classifier(settings: Settings, profile: Profile) -> dict[str, str]:
    from hair_pipeline.models.weights import STAND_IN_CLASSIFIER, find_weight

    if profile.base_training is not None:
        versions = _vae(settings, profile)
    else:
        versions = _catalog(settings, profile) | {"base": base_version(settings, profile)}
    if profile.classifier.start == "stand_in":
        versions["start"] = weights_version(find_weight(STAND_IN_CLASSIFIER, settings))
    return versions


def _patches(settings: Settings, profile: Profile) -> dict[str, str]:
    from hair_pipeline.models.weights import STAND_IN_PATCH_ENCODER, find_weight

    versions = _catalog(settings, profile) | _assets(settings, "hair_patches")
    if profile.patch_encoder.start == "stand_in":
        versions["start"] = weights_version(find_weight(STAND_IN_PATCH_ENCODER, settings))
    return versions


def _stage1(settings: Settings, profile: Profile) -> dict[str, str]:
    return (
        _catalog(settings, profile)
        | _assets(settings, "latents", "style_vectors")
        | {"base": base_version(settings, profile)}
        | _judges(settings, profile, "stage1")
    )


def _stage2(settings: Settings, profile: Profile) -> dict[str, str]:
    return (
        _stage1(settings, profile)
        | _assets(settings, "identity_embeddings")
        | {"stage1": current("stage1", settings).version}
        | _judges(settings, profile, "stage2")
    )


def _assets(settings: Settings, *names: str) -> dict[str, str]:
    return {name: asset_versions(settings, name) for name in names}


def _judges(settings: Settings, profile: Profile, stage: str) -> dict[str, str]:
    """Versions of the networks behind the losses that are switched on; Stage 1 sees no faces."""
    from hair_pipeline.models.recogniser import recogniser_path
    from hair_pipeline.models.weights import STAND_IN_PERCEPTUAL, find_weight

    losses = (profile.stage1 if stage == "stage1" else profile.stage2).losses
    versions = {}
    if losses.identity.weight > 0 and stage == "stage2":
        path = recogniser_path(settings, profile)
        versions["recogniser"] = "none" if path is None else weights_version(path)
    if losses.lpips.weight > 0 or losses.gram.weight > 0:
        kind = profile.models.perceptual
        name = STAND_IN_PERCEPTUAL if kind == "stand_in" else f"lpips_{kind}.safetensors"
        versions["perceptual"] = weights_version(find_weight(name, settings))
    if losses.style.weight > 0:
        versions["style_classifier"] = current("style-classifier", settings).version
    return versions


_BASE = ("base_training.resolution", "base_training.seed")
_TRAINERS: dict[str, Trainer] = {
    "inpainting-vae": Trainer("inpainting_vae", (*_BASE, "base_training.vae", "processing.bald"), _catalog),
    "inpainting-unet": Trainer("inpainting_unet", (*_BASE, "base_training.unet", "processing.bald"), _vae),
    "face-recogniser": Trainer("face_recogniser", (*_BASE, "base_training.recogniser"), _identities, revision="5"),
    "perceptual-trunk": Trainer("perceptual_trunk", (*_BASE, "base_training.perceptual"), _catalog),
    "patch-encoder": Trainer("patch_encoder", ("patch_encoder",), _patches),
    "style-classifier": Trainer("style_classifier", ("classifier",), _classifier, revision="7"),
    "stage1": Trainer("stage1", ("stage1", *STAGE_MODELS), _stage1, revision="8"),
    "stage2": Trainer("stage2", ("stage2", *STAGE_MODELS, "models.recogniser"), _stage2, revision="10"),
}
TRAINERS = tuple(_TRAINERS)


def train(
    name: str, settings: Settings, profile: Profile, *, resume: bool | None = None, force: bool = False
) -> TrainResult:
    """Train a network, or return the finished run of the same configuration on the same data.

    An unfinished run of the same id goes on where it was stopped. On success the run's result is written and becomes
    the current one. Started by torchrun, every process calls this; only the first one writes.

    Args:
        name: one of `TRAINERS`.
        resume: None: when configuration or data changed since the unfinished run, a new run is begun beside it.
            True: that is refused, and the difference shown. False: start over, also when the run is finished.
        force: with `resume=True`, go on from the unfinished run all the same, with the new values and data.

    Raises:
        PipelineError: unknown name, missing inputs or weights, a changed configuration (see `resume`), a run that
            diverges, too little memory, or a disk fault.
    """
    if "torch" not in sys.modules:  # threads that spin while they wait are ruinous where several processes share cores
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    trainer = _TRAINERS.get(name)
    if trainer is None:
        raise PipelineError(f"there is no trainer {name!r}", remedy=f"choose one of {', '.join(TRAINERS)}")
    if force and not resume:
        raise PipelineError("--force only has a meaning with --resume", remedy="add --resume, or leave --force out")
    _refuse_empty_split(settings)

    from torch.distributed.elastic.multiprocessing.errors import record

    from hair_pipeline.training import processes

    plan = RunPlan.make(name, trainer.sections, settings, profile, trainer.data(settings, profile), trainer.revision)
    processes.connect()
    # under torchrun, the message of the process that failed first becomes the run's
    run = record(_train_alone) if "TORCHELASTIC_ERROR_FILE" in os.environ else _train_alone
    result = run(trainer, plan, settings, profile, resume, force)
    assert result is not None
    return result


def _train_alone(
    trainer: Trainer, plan: RunPlan, settings: Settings, profile: Profile, resume: bool | None, force: bool
) -> TrainResult:
    """`_train`, unless another process (of another command) is training the same run."""
    from hair_pipeline.training import processes

    with plan.held() if processes.is_main() else nullcontext():
        return _train(trainer, plan, settings, profile, resume, force)


def _train(
    trainer: Trainer, plan: RunPlan, settings: Settings, profile: Profile, resume: bool | None, force: bool
) -> TrainResult:
    from hair_pipeline.training import processes

    main = processes.is_main()
    done = plan.finished() if resume is not False else None
    if done is not None:
        log.info("%s: run %s is finished, nothing to do", plan.name, plan.run_id)
        if main:
            _record_people(plan, settings)
            done.save(settings.runs / plan.name / "current.json", settings.training_root)
        processes.barrier()
        return done
    adopted = ""
    if main:
        if resume is False:
            shutil.rmtree(plan.run_dir, ignore_errors=True)
        adopted = plan.begin(resume=bool(resume), force=force, hardware=processes.hardware())
        _record_people(plan, settings)
    processes.barrier()

    finished = _run(trainer, plan, settings, profile, resume is not False)
    if main:
        final = plan.run_dir / "final"
        with fresh_folder(final) as folder:
            finished.save(folder)
        notes = finished.notes | ({"resumed": adopted} if adopted else {})
        trained = plan.finish(weights_version(final), finished.metrics, finished.pictures, notes)
        trained.save(plan.run_dir / "result.json", settings.training_root)
        trained.save(settings.runs / plan.name / "current.json", settings.training_root)
        plan.forget_unfinished()
    processes.barrier()
    return trained if main else TrainResult.load(plan.run_dir / "result.json", settings.training_root)


_BUILT_ON = {
    "stage1": ("patch-encoder", "style-classifier"),
    "stage2": ("stage1", "patch-encoder", "style-classifier"),
}
"""Stage -> trainers whose weights it starts from or is exported with; a version holds all of them."""


def _record_people(plan: RunPlan, settings: Settings) -> None:
    """Also those of the runs it builds on, which may be from before somebody left when it is trained by hand."""
    trained = [name for name in _BUILT_ON.get(plan.name, ()) if (settings.runs / name / "current.json").exists()]
    record_people(plan.run_dir, settings, [current(name, settings).run_dir for name in trained])


def _run(trainer: Trainer, plan: RunPlan, settings: Settings, profile: Profile, resume: bool) -> Finished:
    import torch

    from hair_pipeline.training.context import Context

    module = importlib.import_module(f"hair_pipeline.training.trainers.{trainer.module}")
    try:
        finished: Finished = module.run(Context(settings, profile, plan.run_dir, resume))
    except torch.OutOfMemoryError as error:
        stages = {"stage1": profile.stage1, "stage2": profile.stage2}
        raise _out_of_memory(plan, error, stages.get(plan.name)) from error
    return finished


_MUCH_MEMORY = 2 << 30
"""Bytes on the GPU that are not this process's: less may be the driver's or a desktop's."""


def _out_of_memory(plan: RunPlan, error: Exception, stage: StageConfig | None = None) -> PipelineError:
    """What to say: other programs may leave the GPU again, too large a batch stays too large."""
    import torch

    from hair_pipeline.training.memory_plan import switches

    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    what = f"{plan.name}: out of memory ({reason})"
    lower = "lower the batch size or the resolution in the profile"
    if stage is not None:
        what = f"{plan.name}: out of memory at batch_size {stage.batch_size} ({reason})"
        lower = "; ".join(switches(stage)) + " (`hair-pipeline plan-memory` predicts the effect)"
    others = 0
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        others = total - free - torch.cuda.memory_reserved()
    if others > _MUCH_MEMORY:
        return TransientError(
            f"{what}; other programs hold {others / 2**30:.1f} GiB of the GPU",
            file=plan.run_dir,
            remedy=f"free the GPU of them, or {lower}; the last checkpoint is kept",
        )
    return PipelineError(what, file=plan.run_dir, remedy=f"{lower}; the last checkpoint is kept")


def _refuse_empty_split(settings: Settings) -> None:
    """Refuse before anything is loaded when there is no image to train on."""
    catalog = read_catalog(settings.catalog_path, columns=["accepted", "split"])
    accepted = catalog[catalog.accepted]
    if (accepted.split == "train").any():
        return
    if len(accepted):
        what = f"none of the {len(accepted)} accepted images is in the train split (all are held out)"
        remedy = "lower inputs.validation_fraction, or add people"
    else:
        what, remedy = f"none of the {len(catalog)} images is accepted", "see the column reason of the catalog"
    raise PipelineError(f"there is nothing to train on: {what}", file=settings.catalog_path, remedy=remedy)
