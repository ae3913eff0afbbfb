"""Asset checks: what must hold, how severe it is, and what to do when it does not.

Belongs here: checks, each reading what the asset wrote, all built by `_check`. Does not belong here: metrics
(`evaluation`) and measurements of the lower floors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import read_json
from hair_pipeline.orchestration.metadata import frame_table, numbers
from hair_pipeline.orchestration.resources import PipelineResource, explained
from hair_pipeline.settings import Settings

TRAINERS = {
    "patch_encoder": "patch-encoder",
    "style_classifier": "style-classifier",
    "stage1_checkpoint": "stage1",
    "stage2_checkpoint": "stage2",
}
"""Asset -> its trainer."""
MAX_PATCH_DIFFERENCE = 12.0
"""Of 255, mean over a patch: what JPEG may change; another place in the hair differs by more."""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        passed: does it hold?
        metadata: the numbers it rests on.
        description: in words, where the numbers do not say it.
    """

    passed: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)
    description: str | None = None


Measure = Callable[[Settings], Finding]


def _check(
    asset: str, description: str, *, blocking: bool = False, error: bool = False, name: str | None = None
) -> Callable[[Measure], dg.AssetChecksDefinition]:
    """Make a check of a function that measures.

    Args:
        asset: its name.
        description: what holds, and after "On failure:" what to do.
        blocking: it fails with severity ERROR and stops what is downstream.
        error: it fails with severity ERROR and stops nothing; otherwise it warns.
        name: of the check; that of the function if left out.
    """

    def build(measure: Measure) -> dg.AssetChecksDefinition:
        @dg.asset_check(asset=asset, name=name or measure.__name__, description=description, blocking=blocking)
        def check(pipeline: PipelineResource) -> dg.AssetCheckResult:
            with explained():
                found = measure(pipeline.settings)
            return dg.AssetCheckResult(
                passed=found.passed,
                severity=dg.AssetCheckSeverity.ERROR if blocking or error else dg.AssetCheckSeverity.WARN,
                description=found.description,
                metadata=dict(found.metadata),
            )

        return check

    return build


@_check(
    "catalog",
    blocking=True,
    description="No person stands on both sides of the split, and both sides have people. On failure: delete the "
    "catalog and build it again; if it fails again the split code is broken, do not train.",
)
def split_is_person_disjoint(settings: Settings) -> Finding:
    from hair_pipeline.inputs.catalog import read_catalog

    frame = read_catalog(settings.catalog_path, columns=["accepted", "source", "split"])
    accepted = frame[frame["accepted"]]
    sides = accepted.groupby("source")["split"].nunique()
    people = accepted.groupby("split")["source"].nunique()
    leaking = int((sides > 1).sum())
    train, validation = int(people.get("train", 0)), int(people.get("validation", 0))
    return Finding(
        passed=leaking == 0 and train > 0 and validation > 0,
        metadata={"people_on_both_sides": leaking, "train_people": train, "validation_people": validation},
    )


@_check(
    "catalog",
    description="No picture of a held-out person is nearly the same as a picture that is trained on (perceptual "
    "hash). On failure: look at the pairs. Is it one person under two names, set inputs.same_person in the profile "
    "({other: person}) and build the catalog again; are they different pictures, lower inputs.near_duplicate_distance.",
)
def no_near_duplicate_across_the_split(settings: Settings) -> Finding:
    from hair_pipeline.inputs.audit import near_duplicates

    found = near_duplicates(settings, settings.profile_values.inputs)
    people = found.pairs["validation_person"].nunique()
    return Finding(
        passed=found.pairs.empty,
        metadata={
            "validation_images": found.validation,
            "train_images": found.train,
            "near_duplicates": len(found.pairs),
            "people_concerned": int(people),
            **frame_table(
                "nearest",
                found.pairs.assign(
                    **{name: found.pairs[name].map(_listed) for name in ("train_image", "train_person")}
                ),
            ),
        },
    )


def _listed(values: list[str]) -> str:
    """A few of the values, as text."""
    distinct = list(dict.fromkeys(values))
    return ", ".join(distinct[:3]) + (f" and {len(distinct) - 3} more" if len(distinct) > 3 else "")


@_check(
    "catalog",
    description="No two people have (nearly) the same mean embedding, within each embedding model. On failure: look at "
    "the pairs' photos. Is it one person under two names, set inputs.same_person in the profile ({other: person}) and "
    "build the catalog again; are they two people, raise inputs.same_identity_cosine.",
)
def no_person_under_two_names(settings: Settings) -> Finding:
    from hair_pipeline.inputs.audit import equal_identities

    found = equal_identities(settings, settings.profile_values.inputs)
    across = int(found.pairs["across_split"].sum())
    return Finding(
        passed=found.pairs.empty,
        metadata={
            **{f"people_compared_{model}": count for model, count in found.people.items()},
            "pairs": len(found.pairs),
            "pairs_across_the_split": across,
            **frame_table("nearest", found.pairs),
        },
    )


@_check(
    "catalog",
    description="training_face's hair mask agrees with K-Hairstyle's polygon1. On failure: look at the rows with "
    "masks_disagree; many of them point to a wrong pairing of photos and training_face outputs.",
)
def masks_agree(settings: Settings) -> Finding:
    from hair_pipeline.inputs.catalog import read_catalog

    frame = read_catalog(settings.catalog_path, columns=["accepted", "mask_iou", "masks_disagree"])
    compared = frame[frame["accepted"] & frame["mask_iou"].notna()]
    disagreeing = int(compared["masks_disagree"].fillna(False).astype(bool).sum())
    share = disagreeing / len(compared) if len(compared) else 0.0
    metadata: dict[str, float | int] = {"compared": len(compared), "disagreeing": disagreeing, "share": share}
    if len(compared):
        metadata["median_iou"] = float(compared["mask_iou"].median())
    return Finding(passed=share <= 0.1, metadata=metadata)


@_check(
    "catalog",
    description="Share of accepted images whose identity may be used. A low share (K-Hairstyle blurs most faces) means "
    "that the identity loss and metric rest on few images; nothing is broken.",
)
def identities_are_reliable(settings: Settings) -> Finding:
    from hair_pipeline.inputs.catalog import read_catalog

    frame = read_catalog(settings.catalog_path, columns=["accepted", "identity_reliable"])
    accepted = frame[frame["accepted"]]
    reliable = int(accepted["identity_reliable"].sum())
    return Finding(
        passed=reliable > 0,
        metadata={
            "reliable": reliable,
            "accepted": len(accepted),
            "unreliable_share": 1 - reliable / len(accepted) if len(accepted) else 1.0,
        },
    )


@_check(
    "identity_embeddings",
    error=True,
    description="Every gathered embedding marked reliable has 512 finite values and unit length. On failure: the named "
    "images' .npy files are damaged; run training_face on them again.",
)
def embeddings_are_sound(settings: Settings) -> Finding:
    import numpy as np
    import pandas as pd

    from hair_pipeline.inputs.members import read_shards, shard_files
    from hair_pipeline.inputs.training_face import EMBEDDING_DIM, MAX_NORM_ERROR

    folder = settings.processed / "identity_embeddings"
    files = shard_files(folder, read_shards(settings.catalog_path))
    bad: list[str] = []
    norms: list[float] = []
    for path in files:
        frame = pd.read_parquet(path)
        frame = frame[frame["reliable"]]
        for row in frame.itertuples():
            vector = np.asarray(row.embedding, dtype=np.float64)
            norm = float(np.linalg.norm(vector)) if vector.shape == (EMBEDDING_DIM,) else float("nan")
            norms.append(norm)
            if not abs(norm - 1.0) <= MAX_NORM_ERROR:  # also true for NaN
                bad.append(str(row.image_id))
    return Finding(passed=not bad, metadata=_norms(norms, bad))


def _norms(norms: list[float], bad: list[str]) -> dict[str, Any]:
    finite = [norm for norm in norms if math.isfinite(norm)]
    extremes = {"smallest_norm": min(finite, default=None), "largest_norm": max(finite, default=None)}
    return numbers({"checked": len(norms), "bad": len(bad), **extremes}) | {"first_bad": bad[:10]}


@_check(
    "bald_images",
    description="A small probe, tried on people it was not trained on, reads length, fringe and curl from the bald "
    "image hardly better than by chance (what it reads from the mask's outline alone stands beside it). On failure: "
    "processing.bald.hide_forehead, hide_beside_jaw and method gaussian_blur give less away, and stage2.mask_variants "
    "teaches the model not to trust the outline; docs/data-engineer.md compares them.",
)
def bald_images_give_no_style_away(settings: Settings) -> Finding:
    from hair_pipeline.processing.leakage import stored_leakage

    leakage = stored_leakage(settings, settings.profile_values.processing)
    telling = leakage.telling()
    measured = {
        f"{target}_from_{what}": score.accuracy
        for what, scores in (("bald_image", leakage.bald), ("mask", leakage.mask))
        for target, score in scores.items()
    }
    chances = {f"{target}_by_chance": score.chance for target, score in leakage.bald.items()}
    told = (f"{name} {leakage.bald[name].accuracy:.2f}, by chance {leakage.bald[name].chance:.2f}" for name in telling)
    return Finding(
        passed=bool(leakage.bald) and not telling,
        description="; ".join(told) or None if leakage.bald else "not measured: too few people",
        metadata=measured | chances,
    )


def _losses_check(asset: str, trainer: str) -> dg.AssetChecksDefinition:
    """The losses of a training."""

    @_check(
        asset,
        name="losses_are_finite_and_fall",
        description="Every logged loss is a finite number; taken together they are lower over the last third of their "
        "values than over the first; none rises by more than its noise. On failure: look at the curves in TensorBoard "
        "(`tensorboard --logdir` with the run's folder); lower the learning rate where a loss rises or is not finite, "
        "train longer where it stays.",
    )
    def losses(settings: Settings) -> Finding:
        from hair_pipeline.training.losses_log import loss_curves, mean_ratio
        from hair_pipeline.training.runs import current

        curves = loss_curves(current(trainer, settings).run_dir)
        ratio = mean_ratio(curves)
        missing = sum(curve.missing for curve in curves)
        rose = ", ".join(curve.name for curve in curves if curve.rose)
        measured = {f"{curve.name}_{part}": getattr(curve, part) for curve in curves for part in ("start", "end")}
        found = "not measured: the run logged no losses" if not curves else f"risen: {rose}" if rose else None
        return Finding(
            passed=ratio is not None and ratio < 1 and not missing and not rose,
            metadata=numbers({"mean_end_to_start": ratio, "not_finite": missing, **measured}),
            description=found,
        )

    return losses


def _learning_check(asset: str, stage: str) -> dg.AssetChecksDefinition:
    """The held-out hair-region error of a stage fell."""

    @_check(
        asset,
        name="held_out_error_fell",
        description="The hair-region L2 of held-out people, under fixed noise and timesteps, is lower at the end than "
        "at step 0. On failure: compare the loss curves in TensorBoard; the learning rate or the data are suspect.",
    )
    def check(settings: Settings) -> Finding:
        metrics = read_json(settings.runs / stage / "current.json")["metrics"]
        start, end = metrics.get("val_hair_l2_start"), metrics.get("val_hair_l2_end")
        if start is None or end is None:
            return Finding(False, description="not measured: no held-out image of this stage")
        return Finding(passed=end < start, metadata={"start": start, "end": end})

    return check


@_check(
    "hair_patches",
    description="Patches of 48 photos, cut again from their photos: every pixel lies inside the hair mask and outside "
    "the blurred face, and the pixels are the stored ones. On failure: the photos, labels or sheets changed after the "
    "patches were cut; build the catalog and process the shards again.",
)
def patches_are_pure(settings: Settings) -> Finding:
    from hair_pipeline.processing.purity import measure_purity

    found = measure_purity(settings)
    count = len(found.share)
    return Finding(
        passed=count > 0 and min(found.share) == 1.0 and max(found.difference) <= MAX_PATCH_DIFFERENCE,
        metadata=numbers(
            {
                "patches": count,
                "smallest_share_of_hair": min(found.share, default=None),
                "mean_share_of_hair": sum(found.share) / count if count else None,
                "largest_difference_of_255": max(found.difference, default=None),
                "unreadable_photos": len(found.unreadable),
            }
        ),
        description=None if count else "not measured: there are no patches",
    )


@_check(
    "style_vectors",
    description="Every style vector is finite and none is zero. On failure: the patch encoder or the classifier that "
    "made them diverged; look at their losses, train them again, then make the vectors again.",
)
def style_vectors_are_sound(settings: Settings) -> Finding:
    import numpy as np
    import pandas as pd

    from hair_pipeline.inputs.members import read_shards, shard_files

    norms: list[float] = []
    bad: list[str] = []
    for path in shard_files(settings.processed / "style_vectors", read_shards(settings.catalog_path)):
        frame = pd.read_parquet(path)
        for image_id, vector in zip(frame["image_id"], frame["vector"], strict=True):
            norm = float(np.linalg.norm(vector.astype(np.float64)))
            norms.append(norm)
            if not np.isfinite(norm) or norm == 0:
                bad.append(str(image_id))
    return Finding(passed=bool(norms) and not bad, metadata=_norms(norms, bad))


@_check(
    "eval_report",
    description="Every metric with a threshold reaches it (specification: identity at least 0.70). On failure: look at "
    "the report's worst cases; do not sign off.",
)
def metrics_reach_their_thresholds(settings: Settings) -> Finding:
    reports = settings.reports / "eval"
    metrics = read_json(reports / read_json(reports / "current.json")["folder"] / "metrics.json")["metrics"]
    judged = {
        name: metric
        for name, metric in metrics.items()
        if metric["threshold"] is not None and not (metric["value"] is None and name.startswith(_ON_REQUEST))
    }
    short = [_short(name, metric) for name, metric in judged.items() if not metric["passed"]]
    return Finding(
        passed=bool(judged) and not short,
        description="; ".join(short) or None,
        metadata={name: metric["value"] for name, metric in judged.items() if metric["value"] is not None},
    )


_ON_REQUEST = "identity_second"
"""A second recogniser is there only where `models.evaluation_recogniser` names another one."""


def _short(name: str, metric: dict[str, Any]) -> str:
    if metric["value"] is None:
        return f"{name}: {metric['reason']}"
    bound = "at least" if metric["direction"] == "higher" else "at most"
    return f"{name} {metric['value']:.3f}, {bound} {metric['threshold']:.2f} is asked for"


@_check(
    "ab_verdict",
    description="There is a verdict, and it is on the current checkpoint. On failure: materialise ab_verdict again; a "
    "verdict on another model releases nothing.",
)
def verdict_is_present(settings: Settings) -> Finding:
    from hair_pipeline.training.runs import current

    version = current("stage2", settings).version
    pointer = settings.reports / "ab" / "current.json"
    judged = read_json(pointer)["version"] if pointer.exists() else None
    return Finding(
        passed=judged is not None and version.startswith(judged),
        metadata={"checkpoint": version, "judged": judged or "nothing"},
    )


@_check(
    "ab_verdict",
    description="The A/B test came to a verdict of `approve`. On failure nothing is exported or promoted; the report "
    "says why.",
)
def verdict_is_approve(settings: Settings) -> Finding:
    pointer = read_json(settings.reports / "ab" / "current.json")
    return Finding(
        passed=pointer["verdict"] == "approve",
        metadata={"verdict": pointer["verdict"], "version": pointer["version"]},
    )


@_check(
    "exported_weights",
    blocking=True,
    description="The exported version loads again from its files alone: every file has the SHA-256 that was written "
    "down, and the pipeline and the patch encoder load with finite weights. On failure: the disk is full or the files "
    "were changed; delete the version's folder and materialise exported_weights again. Nothing is promoted meanwhile.",
)
def export_makes_the_round_trip(settings: Settings) -> Finding:
    from hair_pipeline.release.export import reload_exported

    try:
        found = reload_exported(settings)
    except (PipelineError, OSError, ValueError) as error:
        return Finding(False, description=str(error))
    return Finding(
        passed=not found.damaged and not found.not_finite,
        metadata={
            "version": found.version,
            "files": found.files,
            "parameters": found.parameters,
            "damaged_files": found.damaged,
            "not_finite": found.not_finite,
        },
    )


CHECKS = [
    split_is_person_disjoint,
    no_near_duplicate_across_the_split,
    no_person_under_two_names,
    masks_agree,
    identities_are_reliable,
    embeddings_are_sound,
    bald_images_give_no_style_away,
    patches_are_pure,
    style_vectors_are_sound,
    *(_losses_check(asset, trainer) for asset, trainer in TRAINERS.items()),
    _learning_check("stage1_checkpoint", "stage1"),
    _learning_check("stage2_checkpoint", "stage2"),
    metrics_reach_their_thresholds,
    verdict_is_present,
    verdict_is_approve,
    export_makes_the_round_trip,
]
