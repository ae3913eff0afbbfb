"""Group `release`: exporting what won, and putting it into production.

Belongs here: the two steps as assets. Does not belong here: the gate, the registry and the server (`release`).
Both assets read the verdict and the sign-off again: a blocking check guards only its own run.
"""

import dagster as dg

from hair_pipeline.orchestration.assets.evaluation import ab_verdict, eval_report
from hair_pipeline.orchestration.assets.texture import patch_encoder
from hair_pipeline.orchestration.assets.training import stage2_checkpoint
from hair_pipeline.orchestration.compute_tags import CPU, GPU
from hair_pipeline.orchestration.metadata import numbers
from hair_pipeline.orchestration.resources import PipelineResource, explained

GROUP = "release"


@dg.asset(
    group_name=GROUP,
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
    group_name=GROUP,
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
