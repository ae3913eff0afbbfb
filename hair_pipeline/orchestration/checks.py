"""Asset checks: what must hold, how severe it is, and what to do when it does not.

Belongs here: checks, each reading what the asset wrote. Does not belong here: metrics (`evaluation`).
"""

from __future__ import annotations

import dagster as dg

from hair_pipeline.files import read_json
from hair_pipeline.orchestration.assets.inputs import catalog
from hair_pipeline.orchestration.assets.processed import identity_embeddings
from hair_pipeline.orchestration.assets.released import ab_verdict, eval_report
from hair_pipeline.orchestration.assets.trained import stage1_checkpoint, stage2_checkpoint
from hair_pipeline.orchestration.metadata import frame_table
from hair_pipeline.orchestration.resources import PipelineResource, explained


@dg.asset_check(
    asset=catalog,
    blocking=True,
    description="No person stands on both sides of the split, and both sides have people. On failure: delete the "
    "catalog and build it again; if it fails again the split code is broken, do not train.",
)
def split_is_person_disjoint(pipeline: PipelineResource) -> dg.AssetCheckResult:
    from hair_pipeline.inputs.catalog import read_catalog

    with explained():
        frame = read_catalog(pipeline.settings.catalog_path, columns=["accepted", "source", "split"])
    accepted = frame[frame["accepted"]]
    sides = accepted.groupby("source")["split"].nunique()
    people = accepted.groupby("split")["source"].nunique()
    leaking = int((sides > 1).sum())
    train, validation = int(people.get("train", 0)), int(people.get("validation", 0))
    return dg.AssetCheckResult(
        passed=leaking == 0 and train > 0 and validation > 0,
        metadata={"people_on_both_sides": leaking, "train_people": train, "validation_people": validation},
    )


@dg.asset_check(
    asset=catalog,
    description="No picture of a held-out person is nearly the same as a picture that is trained on (perceptual "
    "hash). On failure: look at the pairs. Is it one person under two names, set inputs.same_person in the profile "
    "({other: person}) and build the catalog again; are they different pictures, lower inputs.near_duplicate_distance.",
)
def no_near_duplicate_across_the_split(pipeline: PipelineResource) -> dg.AssetCheckResult:
    from hair_pipeline.inputs.audit import near_duplicates

    with explained():
        found = near_duplicates(pipeline.settings, pipeline.profile.inputs)
    people = found.pairs["validation_person"].nunique()
    return dg.AssetCheckResult(
        passed=found.pairs.empty,
        severity=dg.AssetCheckSeverity.WARN,
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


@dg.asset_check(
    asset=catalog,
    description="No two people have (nearly) the same mean embedding, within each embedding model. On failure: look at "
    "the pairs' photos. Is it one person under two names, set inputs.same_person in the profile ({other: person}) and "
    "build the catalog again; are they two people, raise inputs.same_identity_cosine.",
)
def no_person_under_two_names(pipeline: PipelineResource) -> dg.AssetCheckResult:
    from hair_pipeline.inputs.audit import equal_identities

    with explained():
        found = equal_identities(pipeline.settings, pipeline.profile.inputs)
    across = int(found.pairs["across_split"].sum())
    return dg.AssetCheckResult(
        passed=found.pairs.empty,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            **{f"people_compared_{model}": count for model, count in found.people.items()},
            "pairs": len(found.pairs),
            "pairs_across_the_split": across,
            **frame_table("nearest", found.pairs),
        },
    )


@dg.asset_check(
    asset=catalog,
    description="training_face's hair mask agrees with K-Hairstyle's polygon1. On failure: look at the rows with "
    "masks_disagree; many of them point to a wrong pairing of photos and training_face outputs.",
)
def masks_agree(pipeline: PipelineResource) -> dg.AssetCheckResult:
    from hair_pipeline.inputs.catalog import read_catalog

    with explained():
        frame = read_catalog(pipeline.settings.catalog_path, columns=["accepted", "mask_iou", "masks_disagree"])
    compared = frame[frame["accepted"] & frame["mask_iou"].notna()]
    disagreeing = int(compared["masks_disagree"].fillna(False).astype(bool).sum())
    share = disagreeing / len(compared) if len(compared) else 0.0
    metadata: dict[str, float | int] = {"compared": len(compared), "disagreeing": disagreeing}
    if len(compared):
        metadata["median_iou"] = float(compared["mask_iou"].median())
    return dg.AssetCheckResult(passed=share <= 0.1, severity=dg.AssetCheckSeverity.WARN, metadata=metadata)


@dg.asset_check(
    asset=catalog,
    description="Share of accepted images whose identity may be used. A low share (K-Hairstyle blurs most faces) means "
    "that the identity loss and metric rest on few images; nothing is broken.",
)
def identities_are_reliable(pipeline: PipelineResource) -> dg.AssetCheckResult:
    from hair_pipeline.inputs.catalog import read_catalog

    with explained():
        frame = read_catalog(pipeline.settings.catalog_path, columns=["accepted", "identity_reliable"])
    accepted = frame[frame["accepted"]]
    reliable = int(accepted["identity_reliable"].sum())
    return dg.AssetCheckResult(
        passed=reliable > 0,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"reliable": reliable, "accepted": len(accepted)},
    )


@dg.asset_check(
    asset=identity_embeddings,
    description="Every gathered embedding marked reliable has 512 finite values and unit length. On failure: the named "
    "images' .npy files are damaged; run training_face on them again.",
)
def embeddings_are_sound(pipeline: PipelineResource) -> dg.AssetCheckResult:
    import numpy as np
    import pandas as pd

    folder = pipeline.settings.processed / "identity_embeddings"
    files = sorted(folder.glob("*.parquet"))
    bad: list[str] = []
    count = 0
    for path in files:
        frame = pd.read_parquet(path)
        frame = frame[frame["reliable"]]
        count += len(frame)
        for row in frame.itertuples():
            vector = np.asarray(row.embedding, dtype=np.float64)
            norm = float(np.linalg.norm(vector)) if vector.shape == (512,) else float("nan")
            if not abs(norm - 1.0) < 1e-2:  # also true for NaN
                bad.append(str(row.image_id))
    return dg.AssetCheckResult(passed=not bad, metadata={"checked": count, "bad": len(bad), "first_bad": bad[:10]})


@dg.asset_check(
    asset="bald_images",
    description="A small probe, tried on people it was not trained on, reads length, fringe and curl from the bald "
    "image no better than by chance or from the outline of the repainted region, which the model is given anyway. On "
    "failure: raise processing.bald.growth, or take another method; docs/data-engineer.md compares them.",
)
def bald_images_give_no_style_away(pipeline: PipelineResource) -> dg.AssetCheckResult:
    from hair_pipeline.processing.leakage import stored_leakage

    with explained():
        leakage = stored_leakage(pipeline.settings, pipeline.profile.processing)
    telling = leakage.telling()
    measured = {
        f"{target}_from_{what}": score.accuracy
        for what, scores in (("bald_image", leakage.bald), ("mask", leakage.mask))
        for target, score in scores.items()
    }
    chances = {f"{target}_by_chance": score.chance for target, score in leakage.bald.items()}
    return dg.AssetCheckResult(
        passed=bool(leakage.bald) and not telling,
        severity=dg.AssetCheckSeverity.WARN,
        description=", ".join(telling) or None if leakage.bald else "not measured: too few people",
        metadata=measured | chances,
    )


def _learning_check(asset: dg.AssetsDefinition, stage: str) -> dg.AssetChecksDefinition:
    """The held-out hair-region error of a stage fell."""

    @dg.asset_check(
        asset=asset,
        name="held_out_error_fell",
        description="The hair-region L2 of held-out people, under fixed noise and timesteps, is lower at the end than "
        "at step 0. On failure: compare the loss curves in TensorBoard; the learning rate or the data are suspect.",
    )
    def check(pipeline: PipelineResource) -> dg.AssetCheckResult:
        metrics = read_json(pipeline.settings.runs / stage / "current.json")["metrics"]
        start, end = metrics.get("val_hair_l2_start"), metrics.get("val_hair_l2_end")
        if start is None or end is None:
            return dg.AssetCheckResult(
                passed=False,
                severity=dg.AssetCheckSeverity.WARN,
                description="not measured: no held-out image of this stage",
            )
        return dg.AssetCheckResult(
            passed=end < start, severity=dg.AssetCheckSeverity.WARN, metadata={"start": start, "end": end}
        )

    return check


@dg.asset_check(
    asset=eval_report,
    description="Every metric with a threshold reaches it (specification: identity at least 0.70). On failure: look at "
    "the report's worst cases; do not sign off.",
)
def metrics_reach_their_thresholds(pipeline: PipelineResource) -> dg.AssetCheckResult:
    with explained():
        reports = pipeline.settings.reports / "eval"
        metrics = read_json(reports / read_json(reports / "current.json")["folder"] / "metrics.json")["metrics"]
    judged = {name: metric for name, metric in metrics.items() if metric["threshold"] is not None}
    short = {name: metric["value"] for name, metric in judged.items() if not metric["passed"]}
    unmeasured = [f"{name}: {judged[name]['reason']}" for name, value in short.items() if value is None]
    return dg.AssetCheckResult(
        passed=bool(judged) and not short,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(unmeasured) or None,
        metadata={name: metric["value"] for name, metric in judged.items() if metric["value"] is not None},
    )


@dg.asset_check(
    asset=ab_verdict,
    description="The A/B test came to a verdict of `approve`. On failure nothing is exported or promoted; the report "
    "says why.",
)
def verdict_is_approve(pipeline: PipelineResource) -> dg.AssetCheckResult:
    with explained():
        pointer = read_json(pipeline.settings.reports / "ab" / "current.json")
    return dg.AssetCheckResult(
        passed=pointer["verdict"] == "approve",
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"verdict": pointer["verdict"], "version": pointer["version"]},
    )


CHECKS = [
    split_is_person_disjoint,
    no_near_duplicate_across_the_split,
    no_person_under_two_names,
    masks_agree,
    identities_are_reliable,
    embeddings_are_sound,
    bald_images_give_no_style_away,
    _learning_check(stage1_checkpoint, "stage1"),
    _learning_check(stage2_checkpoint, "stage2"),
    metrics_reach_their_thresholds,
    verdict_is_approve,
]
