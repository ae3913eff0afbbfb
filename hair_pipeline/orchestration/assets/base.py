"""Group `base`: weights from outside, published ones or those of data/sample_models; observed, never made here.

Belongs here: what the definitions say of them. Does not belong here: finding and hashing them (`models.outside`).
"""

import dagster as dg

from hair_pipeline.orchestration.compute_tags import CPU
from hair_pipeline.orchestration.resources import PipelineResource, explained
from hair_pipeline.profile import Profile

GROUP = "base"


def build_outside(profile: Profile) -> list[dg.SourceAsset]:
    """The weights that the profile names; their data versions are hashes of their content."""
    return [
        _outside("inpainting_base", profile.models.base),
        _outside("face_recogniser", profile.models.recogniser),
        _outside("perceptual_trunk", profile.models.perceptual),
    ]


def _outside(name: str, reference: str) -> dg.SourceAsset:
    @dg.observable_source_asset(
        name=name,
        group_name=GROUP,
        description=f"Weights from outside: {reference}. Its data version is a hash of their content.",
        tags={"dagster/kind/torch": ""},
        op_tags=dict(CPU["op_tags"]),
    )
    def observe(pipeline: PipelineResource) -> dg.DataVersion:
        from hair_pipeline.models.outside import outside_version

        with explained():
            return dg.DataVersion(outside_version(name, pipeline.settings, pipeline.profile))

    return observe
