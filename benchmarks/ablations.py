"""What each choice of the recipe is worth: trained without it, measured by the evaluation's metrics, over seeds.

    uv run python benchmarks/ablations.py --out data/ablations [--seeds 3] [--variants full no-gram ...] [--set ...]

Needs a finished `hair-pipeline demo` (HAIR_PIPELINE_TRAINING_ROOT says where): its processed data, style classifiers
and base are read, never written; each variant trains Stage 1 and Stage 2 below --out. What is finished is kept, so the
command goes on where it was stopped. Prints a Markdown table: mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import yaml

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import write_json
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings, load_settings

OFF: dict[str, Any] = {"weight": 0.0}
BOTH = ("stage1", "stage2")
PIXEL_TERMS = ("identity", "lpips", "gram", "style")
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "no-identity": {"stage2": {"losses": {"identity": OFF}}},
    "no-lpips": {stage: {"losses": {"lpips": OFF}} for stage in BOTH},
    "no-gram": {stage: {"losses": {"gram": OFF}} for stage in BOTH},
    "no-style": {stage: {"losses": {"style": OFF}} for stage in BOTH},
    "base-loss-only": {stage: {"losses": dict.fromkeys(PIXEL_TERMS, OFF)} for stage in BOTH},
    "no-identity-mask": {"stage2": {"mask_identity": False}},
    "mask-randomisation": {"stage2": {"mask_variants": 4}},
    "no-stage1": {"stage1": {"max_steps": 0}},
}
"""Changes to the profile; `max_steps: 0` of Stage 1 means that Stage 2 starts from new adapters.

Without the identity mask the branch acts on the whole image in training; it is sampled as always, with the mask. The
profile `sample` has one mask per photo, so it is randomisation that is added.
"""

LATENTS = "latents"
UNFELT = 1e-12
"""A learning rate that changes nothing: Stage 2 needs a Stage 1 to start from."""
NETWORKS = ("patch-encoder", "style-classifier")


def changed(profile: Profile, variant: str, seed: int, more: dict[str, Any]) -> Profile:
    """The profile with a variant's changes, further ones, and the seed in both stages and the evaluation."""
    values = profile.model_dump(mode="json")
    for change in (VARIANTS[variant], more, {stage: {"seed": seed} for stage in BOTH}):
        values = _merge(values, change)
    if values["stage1"]["max_steps"] == 0:
        values["stage1"] |= {"max_steps": 1, "learning_rate": UNFELT, "learning_rate_deep": UNFELT}
    return Profile.model_validate(values)


def _merge(values: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, value in change.items():
        merged[name] = _merge(merged[name], value) if isinstance(value, dict) else value
    return merged


def open_root(source: Settings, profile: Profile, folder: Path) -> Settings:
    """A training root of its own whose processed data and earlier networks are the source's.

    A variant with other masks gets latents of its own.
    """
    from hair_pipeline.training.latents import encode_shard

    settings = source.model_copy(update={"training_root": folder})
    own_latents = profile.stage2.mask_variants != source.profile_values.stage2.mask_variants
    link(source.training_root / "base", folder / "base")
    for path in source.processed.iterdir():
        if not (own_latents and path.name == LATENTS):
            link(path, settings.processed / path.name)
    for name in NETWORKS:
        if not (settings.runs / name).exists():
            shutil.copytree(source.runs / name, settings.runs / name)
    if own_latents:
        for shard in read_catalog(source.catalog_path, columns=["shard"]).shard.dropna().unique():
            encode_shard(shard, settings, profile)
    return settings


def link(target: Path, path: Path) -> None:
    """A symbolic link, if there is something to link to and nothing in its place."""
    if target.exists() and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target.resolve())


def run(variant: str, seed: int, source: Settings, profile: Profile, out: Path) -> dict[str, float]:
    """Train and evaluate one variant, or read what was measured before."""
    from hair_pipeline.evaluation.report import evaluate
    from hair_pipeline.training.entry import train

    path = out / variant / str(seed) / "metrics.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    settings = open_root(source, profile, path.parent / "training")
    for stage in BOTH:
        train(stage, settings, profile)
    result = evaluate(settings, profile)
    metrics = {name: value for name, value in result.numbers.items() if value is not None}
    write_json(path, metrics)
    return metrics


def main() -> None:
    """Run the variants, print the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--metrics", nargs="+", help="columns; all that every variant has, if left out")
    parser.add_argument("--set", nargs="*", default=[], metavar="A.B=VALUE", help="profile values: stage2.max_steps=4")
    arguments = parser.parse_args()
    more: dict[str, Any] = {}
    for item in arguments.set:
        name, value = item.split("=", 1)
        place = more
        *parents, last = name.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = yaml.safe_load(value)

    source = load_settings()
    measured: dict[str, list[dict[str, float]]] = {}
    for variant in arguments.variants:
        for seed in range(arguments.seeds):
            try:
                profile = changed(source.profile_values, variant, seed, more)
                measured.setdefault(variant, []).append(run(variant, seed, source, profile, arguments.out.absolute()))
            except PipelineError as error:
                print(f"{variant}, seed {seed}: {error.message}", flush=True)
        print_table(measured, arguments.metrics)


def print_table(measured: dict[str, list[dict[str, float]]], columns: list[str] | None) -> None:
    """Mean and standard deviation per variant and metric."""
    rows = {variant: numbers for variant, numbers in measured.items() if numbers}
    if not rows:
        return
    every = [set(numbers) for seeds in rows.values() for numbers in seeds]
    names = columns or sorted(set.intersection(*every))
    print("\n| variant | seeds | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 2) + "|")
    for variant, seeds in rows.items():
        cells = []
        for name in names:
            values = [numbers[name] for numbers in seeds if name in numbers]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}" if values else "")
        print(f"| {variant} | {len(seeds)} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
