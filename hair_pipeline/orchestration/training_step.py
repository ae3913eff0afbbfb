"""The step of an asset that learns: `hair-pipeline train NAME` as its child, and what it left as metadata.

Belongs here: the config that the launchpad shows, and the result. Does not belong here: the child itself (`trainer`).
Without `from __future__ import annotations`: Dagster reads the real types.
"""

import dagster as dg
from pydantic import Field

from hair_pipeline.orchestration.metadata import loss_curves, numbers, thumbnail
from hair_pipeline.orchestration.resources import PipelineResource, explained
from hair_pipeline.orchestration.trainer import train_in_child
from hair_pipeline.training.runs import current


class TrainingConfig(dg.Config):
    """How to treat an unfinished or finished training. The launchpad shows these texts."""

    start_over: bool = Field(
        default=False,
        description="Throw the run of this configuration and these data away, finished or not, and train from step 0.",
    )
    keep_going: bool = Field(
        default=False,
        description="Go on from the unfinished run's checkpoint although configuration or data changed since; the "
        "result's notes say so. Otherwise such a change begins a new run beside the old one.",
    )

    def options(self) -> list[str]:
        """The options of `hair-pipeline train`."""
        if self.start_over and self.keep_going:
            raise dg.Failure(
                "start_over and keep_going exclude each other: choose one in the run's config", allow_retries=False
            )
        if self.start_over:
            return ["--no-resume"]
        return ["--resume", "--force"] if self.keep_going else []


def train_network(
    name: str, context: dg.AssetExecutionContext, config: TrainingConfig, pipeline: PipelineResource
) -> dg.MaterializeResult:
    """Run `hair-pipeline train NAME` and report what it left in runs/NAME/current.json."""
    options = config.options()
    if context.retry_number > 0:  # what was thrown away once is begun anew only once
        options = [option for option in options if option != "--no-resume"]
    with explained():
        train_in_child(name, context, pipeline.settings, options)
        result = current(name, pipeline.settings)
    notes = "\n".join(f"- **{subject}**: {note}" for subject, note in result.notes.items())
    return dg.MaterializeResult(
        data_version=dg.DataVersion(result.version),
        metadata={
            **(thumbnail(result.pictures[0]) if result.pictures else {}),
            **loss_curves(result.run_dir),
            "version": result.version,
            "run_folder": dg.MetadataValue.path(str(result.run_dir)),
            **numbers(result.metrics),
            **({"notes": dg.MetadataValue.md(notes)} if notes else {}),
        },
    )
