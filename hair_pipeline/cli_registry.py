"""The `hair-pipeline registry` commands: versions, sign-offs, promotion to production and rollback.

Belongs here: arguments in, one function of `release` each, plain words out. Does not belong here: the rules
(`release`).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hair_pipeline.settings import load_settings

if TYPE_CHECKING:
    from hair_pipeline.release.registry import Registry

registry_app = typer.Typer(no_args_is_help=True, help="Versions, sign-offs, promotion to production and rollback.")


@registry_app.command(name="list")
def list_versions() -> None:
    """List all versions with their verdict and status, oldest first."""
    versions = _registry().list()
    if not versions:
        typer.echo("no version is registered yet: materialise exported_weights and production_registry")
    for version, record in versions.items():
        typer.echo(f"{version}  verdict: {record['verdict']['verdict']:<12}  {record['status']}")


@registry_app.command(name="show")
def show(version: Annotated[str, typer.Argument(help="A version of `registry list`.")]) -> None:
    """Show one version as JSON: files and hashes, verdict, sign-offs, history."""
    import json

    ensure_ascii = sys.stdout.encoding.lower() != "utf-8"
    typer.echo(json.dumps(_registry().show(version), ensure_ascii=ensure_ascii, indent=2))


@registry_app.command(name="sign-off")
def sign_off(
    version: Annotated[str, typer.Argument(help="A version of `registry list`.")],
    reviewer: Annotated[str, typer.Option(help="Who looked at the report.")],
    decision: Annotated[str, typer.Option(help="approve or reject.")],
    notes: Annotated[str, typer.Option(help="What was seen.")] = "",
) -> None:
    """Record a person's decision about a version, after looking at the A/B report."""
    registry = _registry()
    registry.sign_off(version, reviewer, decision, notes)
    typer.echo(f"{version}: {decision} by {reviewer}")
    if decision == "reject" or registry.production() == version:
        return
    if obstacles := registry.obstacles(version):
        typer.echo(f"it cannot be promoted yet: {'; '.join(map(str, obstacles))}")
    else:
        typer.echo(f"next: uv run hair-pipeline registry promote {version}")


@registry_app.command(name="import-review")
def import_sheet(
    version: Annotated[str, typer.Argument(help="A version of `registry list`.")],
    sheet: Annotated[Path, typer.Option(help="The filled sheet: sheet.csv, or what the review page saved.")],
    key: Annotated[Path, typer.Option(help="blind_key.json of the same A/B test.")],
    reviewer: Annotated[str, typer.Option(help="Who filled the sheet.")],
) -> None:
    """Record a filled blind-review sheet as a sign-off, by the rule in docs/operator.md; inconclusive signs nothing."""
    from hair_pipeline.release.registry import import_review

    settings = load_settings()
    result = import_review(_registry(), version, sheet, key, reviewer, settings.profile_values.ab_test)
    for reason in result.reasons:
        typer.echo(f"- {reason}")
    signed = "; nothing was signed off" if result.decision == "inconclusive" else ""
    typer.echo(f"{version}: {result.decision} by {reviewer} ({result.photos} photos){signed}")


@registry_app.command(name="promote")
def promote(version: Annotated[str, typer.Argument(help="A version of `registry list`.")]) -> None:
    """Put a version into production; refused without an `approve` verdict against the version that is in production,
    a sign-off of that test, and intact files.

    Then the server's config is written, the restart commands run and the server's health is asked for, as far as the
    profile's `release` says so. If that fails, the earlier version is put back, on the server too.
    """
    from hair_pipeline.release.registry import promote_and_deploy

    with _ended_as_by_ctrl_c():
        before = promote_and_deploy(_registry(), version, load_settings().profile_values.release)
    typer.echo(f"production: {version} (before: {before or 'nothing'})")


@registry_app.command(name="rollback")
def rollback(
    reason: Annotated[str, typer.Option(help="Kept in the history.")] = "",
    force: Annotated[
        bool,
        typer.Option("--force", help="Also to a version that a person has rejected; past versions that were erased."),
    ] = False,
) -> None:
    """Put the previous production version back, on the server too."""
    from hair_pipeline.release.registry import rollback_and_deploy

    with _ended_as_by_ctrl_c():
        version = rollback_and_deploy(_registry(), reason, load_settings().profile_values.release, force=force)
    typer.echo(f"production: {version}")


@registry_app.command(name="deploy")
def deploy() -> None:
    """Bring the server to the version in production once more: config, restart, health. Changes no version."""
    from hair_pipeline.release.registry import deploy_production

    registry = _registry()
    with _ended_as_by_ctrl_c(), registry.deploying():
        done = deploy_production(registry, load_settings().profile_values.release)
    for line in done or ["the profile's release names neither a server config nor a command"]:
        typer.echo(line)


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Let a lost connection (SIGHUP) and SIGTERM interrupt a deployment as Ctrl-C does, not leave it half done.

    The first of them alone: what follows on it is not interrupted again. Under `nohup`, SIGHUP stays ignored.
    """

    def interrupt(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    default = [each for each in (signal.SIGHUP, signal.SIGTERM) if signal.getsignal(each) == signal.SIG_DFL]
    before = {each: signal.signal(each, interrupt) for each in default}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _registry() -> Registry:
    from hair_pipeline.release.registry import Registry

    return Registry(load_settings().registry_path)
