"""The `hair-pipeline` command. Each subcommand is thin: arguments in, one function of a floor, plain words out.

Belongs here: options, help and exit statuses. Does not belong here: any work. Heavy modules (Dagster,
torch) are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from hair_pipeline import __version__
from hair_pipeline.cli_registry import registry_app
from hair_pipeline.errors import PipelineError, is_transient
from hair_pipeline.profile import load_profile
from hair_pipeline.settings import (
    SAMPLE_MODELS_ROOT,
    SAMPLE_MODELS_WORK,
    SAMPLE_ROOT,
    Settings,
    load_settings,
    require_folders,
    unknown_variables,
)

if TYPE_CHECKING:
    from hair_pipeline.orchestration.launch import Outcome

app = typer.Typer(
    name="hair-pipeline",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="From K-Hairstyle photos and training_face outputs to a released hair inpainting model.\n\n"
    "Start with `hair-pipeline demo`: it needs no data, no weights and no GPU. Inputs and outputs are set by "
    "HAIR_PIPELINE_* variables; `hair-pipeline doctor` shows them and what is missing.",
)
app.add_typer(registry_app, name="registry")
catalog_app = typer.Typer(no_args_is_help=True, help="What became of every input file, and why.")
app.add_typer(catalog_app, name="catalog")
console = Console(stderr=True, highlight=False)
SYSTEM_LIBRARIES = "on Debian and Ubuntu: apt-get install libgl1 libglib2.0-0 (OpenCV needs them)"


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # ellipses, people's names and paths, on a terminal that may know none
        sys.stdout.reconfigure(errors="replace")
    if version:
        typer.echo(f"hair-pipeline {__version__}")
        raise typer.Exit
    if context.invoked_subcommand != "doctor":  # which says it too
        for warning in unknown_variables().values():
            console.print(f"[yellow]warning:[/yellow] {escape(warning)}", soft_wrap=True)


@app.command()
def demo() -> None:
    """Run the whole lineage on an embedded sample: rendered people in both real input formats.

    Renders the inputs once (data/sample), starts from the small networks of data/sample_models, and materialises every
    asset through Dagster, each step in its own process. Afterwards `uv run dagster dev` shows all of it. A second call
    only does again what changed.

    A training root (HAIR_PIPELINE_TRAINING_ROOT) that holds what was made of other inputs is left alone.
    """
    from hair_pipeline.inputs.origin import refuse_sample_in_place_of_others
    from hair_pipeline.sample.write import write_sample

    os.environ["HAIR_PIPELINE_PROFILE"] = "sample"
    for variable in ("K_HAIRSTYLE_ROOT", "TRAINING_FACE_ROOT", "CUSTOMERS_ROOT"):
        os.environ.pop(f"HAIR_PIPELINE_{variable}", None)
    settings = load_settings()
    refuse_sample_in_place_of_others(settings)
    console.print("[bold]1. Sample inputs[/bold] (rendered people; no photographs)")
    write_sample(SAMPLE_ROOT)
    console.print(f"   {SAMPLE_ROOT}\n[bold]2. Lineage[/bold]")
    outcome = _run_lineage(settings, launched_by="hair-pipeline demo")
    _finish(settings, outcome)


@app.command()
def run(
    select: Annotated[
        str | None,
        typer.Option(
            help="Dagster asset selection, e.g. `group:processed`, `eval_report`, `+key:eval_report` (with all "
            "upstream), `key:stage2_checkpoint+` (with all downstream)."
        ),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(help="Only these shards: `shard_0003`, a list with commas, or a range `shard_0000...shard_0099`."),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only the shards whose last run failed.")] = False,
    force: Annotated[bool, typer.Option(help="Also run what is up to date.")] = False,
) -> None:
    """Run the lineage on the configured inputs, without the UI: only what is missing or out of date.

    The same executor and instance as the UI's, so everything shows there afterwards. Ctrl-C stops it; the same command
    goes on where it stopped.

    With --shards or --failed it is a backfill of the processed assets: nothing that has no shards is run.
    """
    from hair_pipeline.inputs.origin import refuse_sample_in_place_of_others

    settings = load_settings()
    if settings.executor == "local":  # elsewhere the folders are those of the machines that run the steps
        require_folders(settings)
    refuse_sample_in_place_of_others(settings)
    outcome = _run_lineage(
        settings, launched_by="hair-pipeline run", selection=select, shards=shards, only_failed=failed, force=force
    )
    _finish(settings, outcome)


def _run_lineage(
    settings: Settings,
    launched_by: str,
    *,
    selection: str | None = None,
    shards: str | None = None,
    only_failed: bool = False,
    force: bool = False,
) -> Outcome:
    from hair_pipeline.files import refuse_if_full
    from hair_pipeline.orchestration.instance import dagster_home, open_instance
    from hair_pipeline.orchestration.launch import launch
    from hair_pipeline.orchestration.partitions import named_shards
    from hair_pipeline.orchestration.progress import StepProgress
    from hair_pipeline.orchestration.terminal import output_to

    log = dagster_home(settings) / "last_run.log"
    console.print(f"   output of the steps: {log}")
    try:
        with open_instance(settings) as instance, output_to(log) as terminal:
            screen = Console(file=terminal, highlight=False, force_terminal=terminal.isatty())
            with StepProgress(screen, log) as progress:
                return launch(
                    instance,
                    selection=selection,
                    shards=None if shards is None else named_shards(instance, shards),
                    only_failed=only_failed,
                    force=force,
                    launched_by=launched_by,
                    on_step=progress.on_step,
                )
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on where it stopped")
        raise typer.Exit(130) from None
    except Exception as error:  # Dagster's own storage has many ways to say it
        refuse_if_full(settings.training_root, dagster_home(settings), cause=error)
        raise


def _finish(settings: Settings, outcome: Outcome) -> None:
    """Say what happened and what comes next; exit 1 if a step failed, unless the release gate refused the model."""
    from hair_pipeline.orchestration.progress import summary_lines

    for line in summary_lines(settings, outcome):
        typer.echo(line)
    if outcome.faults:
        raise typer.Exit(1)


@app.command()
def sample(
    out: Annotated[Path, typer.Option(help="Folder to write k_hairstyle/, training_face/ and customers/ into.")],
    people: Annotated[int, typer.Option(min=2, help="Number of people.")] = 60,
    views: Annotated[int, typer.Option(min=1, help="Photos per person, around the head.")] = 4,
    customers: Annotated[int, typer.Option(min=0, help="Number of customer photos.")] = 100,
    seed: Annotated[int, typer.Option(help="Another seed renders other people.")] = 0,
    faults: Annotated[bool, typer.Option(help="Also write every fault the real release has.")] = False,
) -> None:
    """Render people into K-Hairstyle's layout and label schema, with training_face's outputs beside them."""
    from hair_pipeline.sample.write import write_sample

    write_sample(out.absolute(), people=people, views=views, customers=customers, seed=seed, faults=faults)
    typer.echo(f"sample inputs: {out}")


@app.command(name="sample-models")
def sample_models(
    out: Annotated[Path, typer.Option(help="Folder of the bundle; replaced.")] = SAMPLE_MODELS_ROOT,
    work: Annotated[Path, typer.Option(help="Folder for rendered inputs and training runs.")] = SAMPLE_MODELS_WORK,
) -> None:
    """Train the small networks of data/sample_models anew: base, recogniser, perceptual trunk, classifiers.

    Renders its own people, takes one to three hours on two CPU cores (a GPU is used if there is one), and goes on
    where it stopped when called again. Nothing else needs this command: the bundle is part of the checkout.
    """
    from hair_pipeline.sample.recipe import recipe_profile
    from hair_pipeline.training.sample_models import train_sample_models

    card = train_sample_models(out.absolute(), work.absolute(), recipe_profile())
    for name, values in card["quality"].items():
        typer.echo(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
    typer.echo(f"{card['bytes'] / 1e6:.1f} MB: {out}")


class TrainerName(StrEnum):
    """What can be trained; the same names as `training.entry.TRAINERS`."""

    INPAINTING_VAE = "inpainting-vae"
    INPAINTING_UNET = "inpainting-unet"
    FACE_RECOGNISER = "face-recogniser"
    PERCEPTUAL_TRUNK = "perceptual-trunk"
    PATCH_ENCODER = "patch-encoder"
    STYLE_CLASSIFIER = "style-classifier"
    STAGE1 = "stage1"
    STAGE2 = "stage2"


@app.command()
def train(
    name: Annotated[TrainerName, typer.Argument(help="What to train.")],
    config: Annotated[
        Path | None, typer.Option(help="A profile file (YAML); the configured profile if left out.")
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            help="Go on from the newest valid checkpoint, and refuse if configuration or data changed since; "
            "--no-resume starts over. If left out: go on if nothing changed, else begin a new run beside the old."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With --resume: go on although configuration or data changed.")
    ] = False,
) -> None:
    """Train one network by hand, without Dagster; the assets run this same command.

    Reads the processed data under HAIR_PIPELINE_TRAINING_ROOT and writes runs/NAME/RUN_ID there, with TensorBoard logs.
    Killed at any moment and started again, it ends with the weights of a run that was never killed.

    On several GPUs: torchrun --nproc-per-node 4 -m hair_pipeline.cli train stage2. The processes share each
    step's micro-batches, so the result is that of one process.
    """
    settings = load_settings()
    require_folders(settings, ["models_dir"])
    profile = load_profile(config) if config else settings.profile_values
    with _pipes_session():
        from hair_pipeline.training.entry import train as run_training

        result = run_training(name.value, settings, profile, resume=resume, force=force)
    if os.environ.get("RANK", "0") != "0":
        return
    for metric, value in result.metrics.items():
        typer.echo(f"{metric}: {value:.6g}" if value is not None else f"{metric}: not measured")
    typer.echo(f"{'reused' if result.reused else 'trained'} {name} {result.version}: {result.final_dir}")


def _pipes_session() -> AbstractContextManager[object]:
    """A Dagster Pipes session when the command runs inside a Dagster step (on rank 0), else nothing."""
    from dagster_pipes import DAGSTER_PIPES_CONTEXT_ENV_VAR, open_dagster_pipes

    if DAGSTER_PIPES_CONTEXT_ENV_VAR in os.environ and os.environ.get("RANK", "0") == "0":
        return open_dagster_pipes()
    return nullcontext()


@app.command(name="ab-test")
def ab_test(
    customers: Annotated[
        Path, typer.Option(help="Folder of customer photos `<id>.jpg` with training_face outputs beside them.")
    ],
    old: Annotated[
        str, typer.Option(help="`production`, a version, `untrained`, a folder of an export or of pictures.")
    ],
    new: Annotated[str, typer.Option(help="`current` (the last Stage 2), or as for --old.")],
    out: Annotated[Path, typer.Option(help="Folder for verdict.json, per_image.parquet and report.html.")],
) -> None:
    """Compare two models on the same customers, masks, styles and seeds: approve, reject or inconclusive.

    CUSTOMERS holds `<id>.jpg` with training_face's outputs beside them (`<id>/face_01/...`), or with a bald image
    (`<id>_bald.png` or `bald/<id>.png`). Customers with something missing are listed with the reason; the rest runs.

    OUT gets verdict.json, per_image.parquet, report.html, and `blind/`: a page and a sheet for a reviewer who must not
    know which is which (the key, blind_key.json, stays outside it). With OUT = reports/ab of the training root the
    verdict counts for release.

    A test that was killed goes on where it stopped. It needs no Dagster.
    """
    from hair_pipeline.evaluation.ab_test import run_ab_test
    from hair_pipeline.files import read_json

    settings = load_settings()
    result = run_ab_test(customers.absolute(), old, new, out.absolute(), settings, settings.profile_values)
    sides = read_json(result.folder / "verdict.json")
    typer.echo(f"old: {sides['old']['label']}\nnew: {sides['new']['label']}")
    for reason in result.reasons:
        typer.echo(f"- {reason}")
    typer.echo(f"verdict: {result.verdict}\nreport: {result.report_path}")
    typer.echo(f"blind review: {result.folder / 'blind' / 'review.html'} (keep {result.folder / 'blind_key.json'})")


@app.command(name="style-grid")
def style_grid_command(
    out: Annotated[Path, typer.Option(help="Where to write the picture (.jpg).")],
    model: Annotated[str, typer.Option(help="As for `ab-test`: `current`, `production`, a version, ...")] = "current",
    people: Annotated[int, typer.Option(min=1, help="Rows: held-out people.")] = 8,
    styles: Annotated[int, typer.Option(min=1, help="Columns: styles of other held-out people.")] = 4,
) -> None:
    """Draw held-out people with the hairstyles of others: a picture to look at."""
    from hair_pipeline.evaluation.style_grid import style_grid

    settings = load_settings()
    rows, columns = style_grid(model, settings, settings.profile_values, out, people=people, styles=styles)
    typer.echo(f"{rows} people x {columns} styles: {out}")


@app.command(name="try-on")
def try_on(
    image: Annotated[Path, typer.Option(help="The photo to change, any size.")],
    style: Annotated[Path, typer.Option(help="A photo of the hairstyle to put on.")],
    out: Annotated[Path, typer.Option(help="Where to write the result (.jpg or .png; PNG keeps untouched bytes).")],
    model: Annotated[
        str, typer.Option(help="`production`, `current`, a version, or an exported folder.")
    ] = "production",
    training_face: Annotated[
        Path | None,
        typer.Option(help="Folder of training_face outputs `<stem>/face_01/`; beside the photos if left out."),
    ] = None,
    hair_mask: Annotated[Path | None, typer.Option(help="The photo's hair mask (white = hair), a PNG.")] = None,
    style_mask: Annotated[Path | None, typer.Option(help="The style photo's hair mask (white = hair), a PNG.")] = None,
) -> None:
    """Put the hairstyle of one photo on the person of another; everything outside the hair stays as it is.

    The result is upright, as viewers show the photo, and keeps its colour profile.
    """
    from hair_pipeline.release.serving import try_on_files

    settings = load_settings()
    written = try_on_files(
        model,
        image,
        style,
        out,
        training_face,
        settings,
        settings.profile_values,
        hair_mask=hair_mask,
        style_mask=style_mask,
    )
    typer.echo(f"written: {written}")


@app.command(name="plan-memory")
def plan_memory(
    profile: Annotated[
        str, typer.Option(help="sample, rtx24gb, h100 or a profile file (YAML); the configured one if left out.")
    ] = "",
    vram: Annotated[
        float | None, typer.Option(help="Memory of the card in GiB; the profile's gpu_memory_gib if left out.", min=0.1)
    ] = None,
) -> None:
    """Predict the peak GPU memory of training, part by part, without a GPU and without weights.

    Traces one step of the real configuration on tensors that have shapes but no memory (about a minute). Says
    whether it fits, the largest micro-batch that would, and which switch to turn. Exit status 1 if it does not fit.
    """
    settings = load_settings()
    values = load_profile(profile) if profile else settings.profile_values
    with console.status("loading ...") as status:
        from hair_pipeline.training.memory_plan import plan_stage, stages_to_plan

        plans = [
            plan_stage(values, stage, settings, capacity_gib=vram, progress=status.update)
            for stage in stages_to_plan(values)
        ]
    for plan in sorted(plans, key=lambda plan: plan.peak_gib):  # the last line is the larger peak
        typer.echo("\n".join(plan.lines()))
    if not all(plan.fits for plan in plans):
        raise typer.Exit(1)


@app.command()
def doctor() -> None:
    """Check inputs, weights, GPU, disk and versions, and say what to do. Exit status 1 if something must be mended."""
    from hair_pipeline.doctor import examine

    findings = examine(load_settings())
    for finding in findings:
        typer.echo(finding.line)
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


@catalog_app.command(name="summary")
def catalog_summary(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    attributes: Annotated[
        bool, typer.Option(help="Also list every attribute value, with its share in train and in validation.")
    ] = True,
) -> None:
    """Sum up the catalog: accepted, rejected by reason, mask origin, identity, attributes, train and validation.

    Reads processed/catalog.parquet below HAIR_PIPELINE_TRAINING_ROOT; `hair-pipeline run --select "group:inputs"`
    writes it.
    """
    import json

    from hair_pipeline.inputs.summary import summarise
    from hair_pipeline.inputs.summary_tables import summary_tables

    summary = summarise(load_settings().catalog_path)
    if as_json:
        typer.echo(json.dumps(summary.as_json(), ensure_ascii=sys.stdout.encoding.lower() != "utf-8", indent=2))
        return
    output = Console(highlight=False)
    for table in summary_tables(summary, attributes=attributes):
        output.print(table)


def main() -> None:
    """Entry point: a `PipelineError` is printed as one message, without a traceback, and exits with status 1."""
    # Threads that wait give their core away: else two steps on the same cores slow each other down many times over.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except Exception as error:
        _tell_parent(error)
        if isinstance(error, ImportError) and ".so" in str(error):
            error = PipelineError(f"a system library is missing: {error}", remedy=SYSTEM_LIBRARIES)
        if not isinstance(error, PipelineError):
            raise
        console.print(f"[bold red]error:[/bold red] {escape(error.message)}", soft_wrap=True)
        sys.exit(1)


def _tell_parent(error: Exception) -> None:
    """Leave the error for the step that started this command. Of several processes, the first to fail is the cause."""
    if not (path := os.environ.get("HAIR_PIPELINE_ERROR_FILE")):
        return
    import json

    message = error.message if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
    with suppress(FileExistsError), Path(path).open("x", encoding="utf-8") as file:
        json.dump({"message": message, "transient": is_transient(error)}, file)


if __name__ == "__main__":
    main()
