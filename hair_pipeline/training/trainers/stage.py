"""What Stage 1 and Stage 2 have in common: opening the base, the conditions' tables and the judges, and finishing.

Belongs here: set-up of a stage. Does not belong here: its step (`training.stages`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from hair_pipeline.errors import PipelineError
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.members import Members
from hair_pipeline.models import adapters
from hair_pipeline.models.base import Base, load_base, refuse_uneven_sides
from hair_pipeline.models.gpus import best_device
from hair_pipeline.models.inpainter import HairInpainter
from hair_pipeline.models.perceptual import load_perceptual
from hair_pipeline.models.recogniser import load_recogniser, recogniser_path
from hair_pipeline.models.style_classifier import StyleClassifier
from hair_pipeline.models.weights import base_reference
from hair_pipeline.profile import Profile, StageConfig
from hair_pipeline.training.context import Context, Finished, seed_everything
from hair_pipeline.training.data import (
    LABEL_COLUMNS,
    StageDataset,
    StageSources,
    read_labels,
    read_reliable_identities,
    read_style_vectors,
)
from hair_pipeline.training.latent_store import LatentStore
from hair_pipeline.training.latents import SIDE_OF_KIND, sides_of_latents
from hair_pipeline.training.memory_plan import refuse_what_cannot_fit
from hair_pipeline.training.pixel_losses import Judges
from hair_pipeline.training.runs import current
from hair_pipeline.training.stages import StageTask
from hair_pipeline.training.task import LoopConfig


def run_stage(
    context: Context,
    name: str,
    config: StageConfig,
    kinds: tuple[str, ...],
    prepare: Callable[[HairInpainter], None],
    first_lesson: Callable[[HairInpainter], dict[str, float]] | None = None,
) -> Finished:
    """Train one stage.

    Args:
        kinds: kinds of latents it trains on; the first are whole images, and the ones it is validated on.
        prepare: changes the new model before training (freezes a part, loads the stage before).
        first_lesson: what it learns after the validation at step 0, ahead of the first step.

    Raises:
        PipelineError: there is no sample to train on, latents are of another size than the profile's, a network it
            needs is missing, or the base's VAE cannot take a resolution.
    """
    settings, profile = context.settings, context.profile
    device = best_device()
    refuse_what_cannot_fit(profile, "stage1" if name == "stage1" else "stage2", settings, device)
    seed_everything(config.seed)
    base = load_base(base_reference(settings, profile), settings.models_dir)
    refuse_uneven_sides(base.vae, sides_of_latents(profile))
    sources = open_sources(context, kinds)
    style_dim = sources.styles.dim or profile.patch_encoder.embedding_dim
    model = HairInpainter.build(base, profile.models, style_dim, config.finetune_blocks)
    if config.precision != "fp32" and torch.cuda.is_available():
        model.cast_frozen(torch.bfloat16 if config.precision == "bf16" else torch.float16)
    prepare(model)
    notes: dict[str, str] = {}
    judges = open_judges(context, config, notes, identities=len(sources.identities.ids) if "photo" in kinds else None)
    task = stage_task(name, base, model, config, sources, kinds, style_dim, judges, first_lesson)
    loop = LoopConfig.of_stage(config, task.images, len(task.data) - task.images)
    result = context.loop(task, loop)

    metrics = result.beforehand | {
        "train_samples": float(len(task.data)),
        "validation_images": float(len(task.held_out)),
    }
    metrics |= {"steps": float(result.steps), "skipped_steps": float(result.bad_steps)}
    # not among what is saved with the weights, whose hash is the version: the same training is the same version
    timing = {"seconds": result.seconds} | {f"time_{name}": share for name, share in result.shares.items()}
    metrics |= {
        f"val_{name}_{when}": numbers[name]
        for when, numbers in (("start", result.start), ("end", result.end))
        for name in ("hair_lpips", "hair_lpips_stand_in")
        if name in numbers
    }
    if "hair_l2" in result.start and "hair_l2" in result.end:
        start, end = result.start["hair_l2"], result.end["hair_l2"]
        metrics |= {"val_hair_l2_start": start, "val_hair_l2_end": end, "val_hair_l2_drop": 1 - end / start}
    else:
        notes["val_hair_l2"] = f"no held-out image can be used in {name} (none has {' or '.join(kinds[:1])} latents)"
    if not sources.styles.ids:
        notes["style"] = "no image has a style vector: the style branch was trained on its null tokens only"

    def save(folder: Path) -> None:
        model.save_adapters(folder, {"stage": name, "steps": result.steps, "metrics": metrics, "notes": notes})

    return Finished(save, metrics | timing, notes, result.pictures)


def open_sources(context: Context, kinds: tuple[str, ...]) -> StageSources:
    """The tables a stage's samples are joined from.

    Raises:
        PipelineError: there are no latents, or those of `kinds` are of another size than the profile's.
    """
    settings = context.settings
    members = Members.read(settings.catalog_path)
    latents = LatentStore(settings.processed / "latents", members)
    _refuse_other_sides(latents, kinds, context.profile)
    return StageSources(
        latents,
        read_style_vectors(settings.processed / "style_vectors", members),
        read_reliable_identities(settings.processed / "identity_embeddings", members),
        read_labels(read_catalog(settings.catalog_path, columns=list(LABEL_COLUMNS))),
    )


def _refuse_other_sides(latents: LatentStore, kinds: tuple[str, ...], profile: Profile) -> None:
    """Latents of another size than the profile's would train at that size without a word."""
    for kind in kinds:
        name = SIDE_OF_KIND[kind]
        wanted = sides_of_latents(profile)[name]
        for shard, side in latents.sides(kind).items():
            if side != wanted:
                raise PipelineError(
                    f"{kind} latents of {side} pixels, but {name} of the profile makes them {wanted}",
                    file=latents.folder / f"{shard}.safetensors",
                    remedy="materialise latents again with this profile: HAIR_PIPELINE_PROFILE=<its name or file> "
                    "hair-pipeline run --select key:latents",
                )


def stage_task(
    name: str,
    base: Base,
    model: HairInpainter,
    config: StageConfig,
    sources: StageSources,
    kinds: tuple[str, ...],
    style_dim: int,
    judges: Judges,
    first_lesson: Callable[[HairInpainter], dict[str, float]] | None = None,
) -> StageTask:
    """The stage's task over the given tables.

    Raises:
        PipelineError: there is no training sample, or the anchor loss would anchor to what are not the base's weights.
    """
    if config.losses.anchor.weight > 0 and model.changed_blocks:
        raise PipelineError(
            f"{name}.losses.anchor needs the base's own weights, but this stage or the one before trains "
            f"{', '.join(model.changed_blocks)}",
            remedy=f"set {name}.losses.anchor.weight to 0 and use {name}.losses.context instead",
        )
    timesteps = int(base.noise_scheduler.config.num_train_timesteps)
    groups = [sources.latents.rows(kind, "train") for kind in kinds]
    rows = pd.concat(groups, ignore_index=True)
    if rows.empty:
        raise PipelineError(
            f"{name} has no training image: no latents of kind {' or '.join(kinds)}",
            file=sources.latents.folder,
            remedy="see the column stage2_reason of processed/catalog.parquet: Stage 2 needs training_face outputs "
            "(face JSON and sheet) of at least one training image",
        )
    held_out = _spread(sources.latents.rows(kinds[0], "validation"), config.validation_images)
    data = StageDataset(sources, rows, config, train=True, timesteps=timesteps, style_dim=style_dim)
    check = StageDataset(sources, held_out, config, train=False, timesteps=timesteps, style_dim=style_dim)
    return StageTask(
        name, model, base.vae, base.noise_scheduler, config, data, len(groups[0]), check, judges, first_lesson
    )


def open_judges(context: Context, config: StageConfig, notes: dict[str, str], *, identities: int | None) -> Judges:
    """The networks of the pixel losses whose weight is not zero; what is not available is noted.

    Args:
        identities: how many images have a reliable identity; None where the stage sees no faces.
    """
    settings, profile, losses = context.settings, context.profile, config.losses
    judges = Judges()
    if losses.identity.weight > 0 and identities is not None:
        path = recogniser_path(settings, profile) if identities else None
        if path is None:
            notes["identity_loss"] = (
                "switched off: no image has a reliable identity" if not identities else "switched off: no recogniser"
            )
        else:
            judges.recogniser = load_recogniser(path)
    try:  # validation reports the distance in the hair also where no loss uses it
        judges.perceptual = load_perceptual(profile.models.perceptual, settings)
        if judges.perceptual.is_stand_in:
            notes["perceptual"] = "lpips, gram and val_hair_lpips_stand_in use a stand-in trunk (of rendered people)"
    except PipelineError as error:
        if losses.lpips.weight > 0 or losses.gram.weight > 0:
            raise
        notes["val_hair_lpips"] = f"not measured: {error.what}"
    if losses.style.weight > 0:
        judges.classifier = StyleClassifier.load(current("style-classifier", settings).final_dir / "loss")
        judges.classifier.requires_grad_(False)
    return judges


def freeze_identity_branch(model: HairInpainter) -> None:
    """Stage 1 sees no faces: without this, weight decay would wear the IP-Adapter down."""
    for parameter in adapters.ip_adapter_parameters(model.unet):
        parameter.requires_grad_(False)


def _spread(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most so many rows, evenly spread over the people."""
    if len(rows) <= most:
        return rows
    step = len(rows) / most
    return rows.iloc[[int(i * step) for i in range(most)]].reset_index(drop=True)
