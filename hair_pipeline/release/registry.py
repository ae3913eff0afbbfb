"""What is done with the registry: recording a candidate, promoting it with its deployment.

Belongs here: the steps that read the verdict and the sign-off again and call the server's command. Does not belong
here: the registry's format, lock and state machine (`registry_file`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

from hair_pipeline import files
from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.verdicts import read_verdict, require_approval
from hair_pipeline.profile import Profile, ReleaseConfig
from hair_pipeline.release.deploy import deploy
from hair_pipeline.release.registry_file import Registry, sign_off_command
from hair_pipeline.settings import Settings

__all__ = ["EXPORTED", "CandidateState", "Registry", "promote_and_deploy", "record_candidate"]

EXPORTED = "exported.json"
"""In the checkpoints folder: which version was exported last, with its hashes."""


@dataclass(frozen=True)
class CandidateState:
    """Where a candidate stands.

    Attributes:
        version: its name. state: promoted, or awaiting sign-off.
        message: one or two sentences for a person: what happened or what to do next.
        data_version: content hash of version, files and state.
    """

    version: str
    state: Literal["promoted", "awaiting sign-off"]
    message: str
    data_version: str


def promote_and_deploy(registry: Registry, version: str, config: ReleaseConfig) -> str | None:
    """Promote, run the deploy command, and take the promotion back if that fails.

    Returns:
        The version that was in production before.

    Raises:
        PipelineError: as `Registry.promote`, or the deploy command failed; then the earlier version is in production
            again.
    """
    before = registry.promote(version)
    try:
        deploy(version, config)
    except PipelineError as error:
        if before is None:
            registry.withdraw(version, error.what)
        else:
            registry.rollback(f"deploying {version} failed: {error.what}")
        raise PipelineError(
            f"{error.what}; the promotion of {version} was taken back, in production: {before or 'nothing'}",
            file=error.file,
            remedy=error.remedy,
        ) from error
    return before


def record_candidate(settings: Settings, profile: Profile) -> CandidateState:
    """Register the exported version with its hashes and verdict; promote it if people have signed it off.

    Verdict and sign-off are read from disk again, whatever was said when the weights were exported.

    Raises:
        PipelineError: nothing is exported, the verdict is not approve, a reviewer rejected it, a file is damaged,
            or deploying failed.
    """
    exported = files.read_json(settings.checkpoints / EXPORTED)
    version: str = exported["version"]
    registry = Registry(settings.registry_path, settings.training_root)
    try:
        verdict = require_approval(settings, version).as_json()
    except PipelineError:
        with contextlib.suppress(PipelineError):
            registry.register(
                version,
                settings.training_root / exported["folder"],
                exported["files"],
                read_verdict(settings, version).as_json(),
            )
        raise
    registry.register(version, settings.training_root / exported["folder"], exported["files"], verdict)
    state: Literal["promoted", "awaiting sign-off"] = "promoted"
    if registry.production() == version:
        message = f"version {version} is in production"
    else:
        obstacles = registry.obstacles(version)
        if any("rejected" in obstacle for obstacle in obstacles):
            raise PipelineError(
                f"version {version} is not released: {'; '.join(obstacles)}",
                file=settings.registry_path,
                remedy="train another model; or, if they change their mind, they sign off again with approve",
            )
        if obstacles:
            state = "awaiting sign-off"
            message = (
                f"version {version} is approved by the A/B test and waits for a person: {sign_off_command(version)}"
            )
        else:
            before = promote_and_deploy(registry, version, profile.release)
            message = f"version {version} is in production now (before: {before or 'nothing'})"
    data_version = files.hash_bytes(version, state, *sorted(exported["files"].values()))
    return CandidateState(version, state, message, data_version)
