"""What is done with the registry: recording a candidate, promoting it with its deployment.

Belongs here: the steps that read the verdict and the sign-off again and call the server's command. Does not belong
here: the registry's format, lock and state machine (`registry_file`).
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field, ValidationError

from hair_pipeline import files
from hair_pipeline.errors import PipelineError, ReleaseRefused
from hair_pipeline.evaluation.picture_settings import PictureSettings, require_judged
from hair_pipeline.evaluation.verdicts import read_verdict, require_approval, require_evaluation
from hair_pipeline.profile import AbTestConfig, Profile, ReleaseConfig
from hair_pipeline.release.deploy import deploy, deploys
from hair_pipeline.release.registry_file import COMPARE_AGAIN, REJECTED, Registry, sign_off_command
from hair_pipeline.settings import Settings

if TYPE_CHECKING:
    from hair_pipeline.evaluation.blind_review import BlindResult

log = logging.getLogger(__name__)

__all__ = [
    "CARD_FILE",
    "EXPORTED",
    "CandidateState",
    "Registry",
    "deploy_production",
    "import_review",
    "promote_and_deploy",
    "record_candidate",
    "rollback_and_deploy",
]

CARD_FILE = "hair_pipeline.json"
"""In a version's folder: how to call it, and the settings its pictures were judged with."""
EXPORTED = "exported.json"
"""In the checkpoints folder: which version was exported last, with its hashes."""
DEPLOY_AGAIN = "uv run hair-pipeline registry deploy"


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
    """Promote, deploy, and go back to the earlier version, server included, if deploying fails or is interrupted.

    Returns:
        The version that was in production before.

    Raises:
        PipelineError: as `Registry.promote`, or deploying failed; then the earlier version is in production again,
            and the message says whether the server went back too. If the registry could not go back either, it says
            so, and what is in production.
        BaseException: what interrupted deploying (Ctrl-C), with what was done about it as a note.
    """
    with registry.deploying():
        before = registry.promote(version)
        try:
            deploy_production(registry, config, checked=True)
        except PipelineError as error:
            told = f"{error.what}; {_take_back(registry, version, before, error.what, config)}"
            raise PipelineError(told, file=error.file, remedy=error.remedy) from error
        except BaseException as error:
            told = _take_back(registry, version, before, _named(error), config)
            log.error("deploying %s: %s; %s", version, _named(error), told)
            error.add_note(told)
            raise
    return before


def _take_back(registry: Registry, version: str, before: str | None, why: str, config: ReleaseConfig) -> str:
    """Undo a promotion whose deployment failed, on the server too; what came of it, in words."""
    try:
        if before is None:
            registry.withdraw(version, why)
        else:
            registry.rollback(f"deploying {version} failed: {why}", leaving=version, force=True)
    except Exception as error:
        return (
            f"taking the promotion of {version} back failed too ({_named(error)}), in production: "
            f"{_production(registry)}: look at it at once"
        )
    return (
        f"the promotion of {version} was taken back, in production: {before or 'nothing'}{_go_back(registry, config)}"
    )


def _production(registry: Registry) -> str:
    try:
        return registry.production() or "nothing"
    except PipelineError:
        return "unknown"


def _named(error: BaseException) -> str:
    """An error in words; one without a message by its kind."""
    return error.what if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}".removesuffix(": ")


def deploy_production(registry: Registry, config: ReleaseConfig, *, checked: bool = False) -> list[str]:
    """Bring the server to the version that the registry names; what was done, in words.

    Args:
        checked: the version's files were compared with their registered hashes a moment ago, as `promote` and
            `rollback` do; otherwise that comes first.

    Raises:
        PipelineError: a file is gone or changed, or a step failed; the history says so, as after any other error.
    """
    version = registry.production()
    try:
        if version is not None and not checked:
            registry.require_intact(version)
        done = deploy(version, None if version is None else registry.folder(version), config)
    except BaseException as error:
        if version is not None:
            with contextlib.suppress(PipelineError):  # the error itself counts more than its note
                registry.note("deploy_failed", version, _named(error))
        raise
    if done and version is not None:
        registry.note("deployed", version, "; ".join(done))
    return done


def rollback_and_deploy(registry: Registry, reason: str, config: ReleaseConfig, *, force: bool = False) -> str:
    """Put the previous version back, in the registry and on the server.

    Args:
        force: also if a person has rejected it since; and past earlier versions whose folder is gone.

    Returns:
        The version in production now.

    Raises:
        PipelineError: as `Registry.rollback`; or deploying it failed: then the registry names the previous version all
            the same, since the one rolled back from is not wanted any more.
        BaseException: what interrupted deploying (Ctrl-C), with the same said as a note.
    """
    with registry.deploying():
        version = registry.rollback(reason, force=force, past_erased=force)
        told = f"the registry says {version} again, but the server may not serve it"
        try:
            deploy_production(registry, config, checked=True)
        except PipelineError as error:
            raise PipelineError(
                f"{error.what}; {told}", file=error.file, remedy=f"mend the server, then run: {DEPLOY_AGAIN}"
            ) from error
        except BaseException as error:
            log.error("deploying %s: %s; %s; run: %s", version, _named(error), told, DEPLOY_AGAIN)
            error.add_note(told)
            raise
    return version


def _go_back(registry: Registry, config: ReleaseConfig) -> str:
    """Bring the server back to what the registry names, after a failure; what came of it, in words."""
    try:
        done = deploy_production(registry, config)
    except Exception as error:
        return f"; going back failed on the server too ({_named(error)}): look at it at once"
    return "; the server went back too" if done else ""


def import_review(
    registry: Registry, version: str, sheet: Path, key: Path, reviewer: str, config: AbTestConfig
) -> BlindResult:
    """Record a filled blind-review sheet as a reviewer's sign-off; an inconclusive one signs nothing.

    Args:
        sheet: filled `sheet.csv`. key: the test's `blind_key.json`.

    Raises:
        PipelineError: as `read_review`, no such version, or the sheet belongs to another version or another A/B test
            than the one the version is registered with.
    """
    from hair_pipeline.evaluation.blind_review import read_review  # loads torch; a rollback must not wait for that

    result = read_review(sheet, key, config)
    record = registry.show(version)
    if result.version != version:
        raise PipelineError(
            f"the review compared version {result.version}, not {version}",
            file=key,
            remedy=f"name that version, or give the review of {version}",
        )
    if record["verdict"].get("id") != result.test:
        raise PipelineError(
            f"the review belongs to A/B test {result.test}; version {version} is registered with "
            f"{record['verdict'].get('id')}",
            file=key,
            remedy="review the pictures of the registered test",
        )
    if result.decision != "inconclusive":
        registry.sign_off(version, reviewer, result.decision, "; ".join(result.reasons), review=result.as_json())
    return result


class Exported(BaseModel):
    """exported.json: what was exported last."""

    version: str
    folder: str
    files: dict[str, str] = Field(min_length=1)


def _read_exported(path: Path) -> Exported:
    """Raises PipelineError: it is missing, or not as it was written."""
    try:
        return Exported.model_validate(files.read_json(path))
    except ValidationError as error:
        raise _damaged(path, error) from error


def _read_card(path: Path) -> PictureSettings:
    """The settings in a version's hair_pipeline.json. Raises PipelineError as `_read_exported`."""
    try:
        return PictureSettings.of_card(dict(files.read_json(path)))
    except (ValidationError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> PipelineError:
    return PipelineError(
        f"is damaged ({str(error).strip().splitlines()[0]})", file=path, remedy="materialise exported_weights again"
    )


def record_candidate(settings: Settings, profile: Profile) -> CandidateState:
    """Register the exported version with its hashes and verdict; promote it if people have signed it off since.

    A version that was rolled back, or whose deployment failed, waits for a new sign-off.

    Evaluation, verdict and sign-off are read from disk again, whatever was said when the weights were exported.

    Raises:
        PipelineError: nothing is exported, evaluation or verdict is missing or cannot be read, it was exported with
            other settings than judged, a file is damaged, or deploying failed or was never finished.
        ReleaseRefused: the evaluation is incomplete, the verdict is not approve, a reviewer rejected it, or it was
            compared with another version than the one in production.
    """
    exported = _read_exported(settings.checkpoints / EXPORTED)
    version = exported.version
    registry = Registry(settings.registry_path, settings.training_root)
    _register(exported, registry, settings)
    if registry.production() == version:
        if deploys(profile.release) and not registry.deployed(version):
            raise PipelineError(
                f"version {version} is in production, but its deployment did not end well or was interrupted",
                file=settings.registry_path,
                remedy=f"run: {DEPLOY_AGAIN}",
            )
        return _state(exported, "promoted", f"version {version} is in production")
    obstacles = registry.obstacles(version)
    for kind, remedy in (("rejection", REJECTED), ("opponent", COMPARE_AGAIN)):
        if any(each.kind == kind for each in obstacles):
            said = "; ".join(map(str, obstacles))
            raise ReleaseRefused(
                f"version {version} is not released: {said}", file=settings.registry_path, remedy=remedy
            )
    if obstacles:
        told = f"version {version} is approved by the A/B test and waits for a person: {sign_off_command(version)}"
        return _state(exported, "awaiting sign-off", told)
    if registry.promoted_since_sign_off(version):
        told = (
            f"version {version} was in production since it was signed off, and taken out again; to put it back, "
            f"{sign_off_command(version)}"
        )
        return _state(exported, "awaiting sign-off", told)
    before = promote_and_deploy(registry, version, profile.release)
    return _state(exported, "promoted", f"version {version} is in production now (before: {before or 'nothing'})")


def _register(exported: Exported, registry: Registry, settings: Settings) -> None:
    """Register the exported version with the evidence on disk; a refused one with the verdict that refuses it."""
    version, folder = exported.version, settings.training_root / exported.folder
    require_evaluation(settings, version)
    try:
        verdict = require_approval(settings, version)
    except ReleaseRefused:
        with contextlib.suppress(PipelineError):
            registry.register(version, folder, exported.files, read_verdict(settings, version).as_json())
        raise
    card = _read_card(folder / CARD_FILE)
    require_judged(card, verdict.settings, version, settings.training_root / verdict.path)
    registry.register(version, folder, exported.files, verdict.as_json())


def _state(exported: Exported, state: Literal["promoted", "awaiting sign-off"], message: str) -> CandidateState:
    data_version = files.hash_bytes(exported.version, state, *sorted(exported.files.values()))
    return CandidateState(exported.version, state, message, data_version)
