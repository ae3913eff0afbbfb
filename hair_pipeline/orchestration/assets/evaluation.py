"""Group `evaluation`: how good the model is, and whether it is better than the one in production.

Belongs here: the reports as assets. Does not belong here: measuring, and the rule (`evaluation`).
"""

import dagster as dg

from hair_pipeline.orchestration.assets.inputs import customer_photos
from hair_pipeline.orchestration.assets.processed import identity_embeddings, style_vectors
from hair_pipeline.orchestration.assets.texture import style_classifier
from hair_pipeline.orchestration.assets.training import stage2_checkpoint
from hair_pipeline.orchestration.compute_tags import GPU
from hair_pipeline.orchestration.metadata import numbers, report_link, thumbnail
from hair_pipeline.orchestration.resources import PipelineResource, explained

GROUP = "evaluation"


@dg.asset(
    group_name=GROUP,
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
    group_name=GROUP,
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
