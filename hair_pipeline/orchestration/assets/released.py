"""Groups `evaluation` and `release`: how good the model is, whether it is better, and putting it into production.

The release assets read the verdict and the sign-off again: a blocking check guards only its own run.
"""

import dagster as dg

from hair_pipeline.orchestration.assets.inputs import customer_photos
from hair_pipeline.orchestration.assets.processed import identity_embeddings, style_vectors
from hair_pipeline.orchestration.assets.trained import patch_encoder, stage2_checkpoint, style_classifier
from hair_pipeline.orchestration.compute_tags import CPU, GPU
from hair_pipeline.orchestration.metadata import numbers, report_link, thumbnail
from hair_pipeline.orchestration.resources import PipelineResource, explained


@dg.asset(
    group_name="evaluation",
    deps=[
        stage2_checkpoint,
        identity_embeddings,
        style_vectors,
        style_classifier,
        "face_recogniser",
        "perceptual_trunk",
    ],
    description="The metrics on held-out people, with confidence intervals, beside the untrained base, and an HTML "
    "report with pictures, worst cases and earlier versions.",
    code_version="5",
    kinds={"torch", "html"},
    **GPU,
)
def eval_report(pipeline: PipelineResource) -> dg.MaterializeResult:
    from hair_pipeline.evaluation.report import evaluate

    settings = pipeline.settings
    with explained():
        result = evaluate(settings, pipeline.profile)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(result.data_version),
        metadata={
            **thumbnail(result.preview),
            **report_link(result.report_path, settings),
            "model_version": result.version,
            **numbers(result.numbers),
        },
    )


@dg.asset(
    group_name="evaluation",
    deps=[stage2_checkpoint, eval_report, customer_photos],
    description="The new model against the one in production (or the untrained base) on customer images: approve, "
    "reject or inconclusive; and a blind review for people.",
    code_version="5",
    kinds={"torch", "html"},
    **GPU,
)
def ab_verdict(pipeline: PipelineResource) -> dg.MaterializeResult:
    from hair_pipeline.evaluation.ab_test import run_ab_test
    from hair_pipeline.release.registry import Registry

    settings = pipeline.settings
    with explained():
        in_production = Registry(settings.registry_path).production()
        old = "production" if in_production else pipeline.profile.ab_test.first_opponent
        result = run_ab_test(settings.customers, old, "current", settings.reports / "ab", settings, pipeline.profile)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(result.data_version),
        metadata={
            # customers' faces stay out of the event log; without a customers folder the photos are the inputs' own
            **thumbnail(result.preview if settings.customers_root is None else None),
            "verdict": result.verdict,
            "compared_with": old,
            "reasons": dg.MetadataValue.md("\n".join(f"- {reason}" for reason in result.reasons)),
            **report_link(result.report_path, settings),
            **numbers(result.numbers),
        },
    )


@dg.asset(
    group_name="release",
    deps=[ab_verdict, eval_report, stage2_checkpoint, patch_encoder],
    description="The released files: the merged UNet, LoRA and IP-Adapter in diffusers format, the patch encoder. "
    "Refused unless the evaluation is whole and the verdict is `approve`, won with the profile's settings.",
    code_version="3",
    kinds={"torch", "diffusers"},
    **GPU,
)
def exported_weights(pipeline: PipelineResource) -> dg.MaterializeResult:
    from hair_pipeline.release.export import export_weights

    with explained():
        result = export_weights(pipeline.settings, pipeline.profile)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(result.data_version),
        metadata={
            "version": result.version,
            "folder": dg.MetadataValue.path(str(result.folder)),
            "sha256": dg.MetadataValue.json(dict(result.hashes)),
            **numbers(result.numbers),
        },
    )


@dg.asset(
    group_name="release",
    deps=[exported_weights, ab_verdict],
    description="Records version, hashes and verdict; promotes to production only with `approve` against the "
    "version in production and a person's sign-off, then writes the server's config, restarts it and asks for its "
    "health. Without a sign-off the version waits as a candidate.",
    code_version="2",
    kinds={"json"},
    **CPU,
)
def production_registry(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    from hair_pipeline.release.registry import record_candidate

    with explained():
        state = record_candidate(pipeline.settings, pipeline.profile)
    context.log.info(state.message)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(state.data_version),
        metadata={
            "version": state.version,
            "state": state.state,
            "next_step": state.message,
            "path": dg.MetadataValue.path(str(pipeline.settings.registry_path)),
        },
    )
