"""Does the patch encoder know curl on people it never saw? Person-disjoint folds, with and without curl positives.

    uv run python benchmarks/patch_encoder.py [--folds 4] [--set steps=240]

Needs the patches of `hair-pipeline demo` (or of any run; HAIR_PIPELINE_TRAINING_ROOT says where). Prints one row per
variant: means over all held-out patches of all folds, same-person gallery patches excluded throughout.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from hair_pipeline.inputs.members import Members
from hair_pipeline.models.patch_encoder import PatchEncoder
from hair_pipeline.profile import PatchEncoderConfig, load_profile
from hair_pipeline.settings import load_settings
from hair_pipeline.training import loop
from hair_pipeline.training.context import seed_everything
from hair_pipeline.training.patches import PatchStore
from hair_pipeline.training.trainers.patch_encoder import PatchTask, loop_config

COLUMNS = (
    *("curl_r_at_1", "curl_knn", "style_vector_curl_r_at_1", "style_vector_curl_knn", "curl_linear_probe"),
    *("curl_chance", "person_probe", "person_chance"),
)


def folds_of(store: PatchStore, count: int) -> np.ndarray:
    """The fold of every patch: people dealt out class by class, so that every fold has every class."""
    people = store.table.groupby("person").curl.max().sort_values(kind="stable")
    fold = {person: place % count for place, person in enumerate(people.index)}
    return store.table.person.map(fold).to_numpy()


def train_fold(store: PatchStore, config: PatchEncoderConfig, held_out: np.ndarray) -> dict[str, float]:
    """Train without the held-out patches; measure on them."""
    seed_everything(config.seed)
    encoder = PatchEncoder.from_config(config)
    task = PatchTask(encoder, store, np.flatnonzero(~held_out), np.flatnonzero(held_out), config)
    with tempfile.TemporaryDirectory() as folder:
        result = loop.run(task, loop_config(config), Path(folder), resume=False)
    encoder.eval()
    return result.end | task.probes() | {"seconds": result.seconds}


def main() -> None:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="sample")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--only", type=int, help="measure only so many of the folds")
    parser.add_argument("--variants", nargs="+", default=["as configured", "no curl positives", "no person positives"])
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="values of the patch_encoder section"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    changes = {name: yaml.safe_load(value) for name, value in (item.split("=", 1) for item in arguments.set)}
    profile = load_profile(arguments.profile)
    config = PatchEncoderConfig.model_validate(profile.patch_encoder.model_dump() | changes)
    changed = {"no curl positives": {"curl_weight": 0.0}, "no person positives": {"person_weight": 0.0}}
    settings = load_settings()
    store = PatchStore(settings.processed / "hair_patches", Members.read(settings.catalog_path))
    fold = folds_of(store, arguments.folds)
    measured = arguments.only or arguments.folds
    print(
        f"{len(store.table)} patches of {store.table.person.nunique()} people, {measured} of {arguments.folds} folds\n"
    )
    print("| variant | " + " | ".join((*COLUMNS, "seconds")) + " |")
    print("|---" * (len(COLUMNS) + 2) + "|", flush=True)
    for variant in arguments.variants:
        began = time.monotonic()
        values = config.model_copy(update=changed.get(variant, {}))
        numbers = [train_fold(store, values, fold == number) for number in range(measured)]
        sizes = [min(int((fold == number).sum()), 256) for number in range(measured)]
        means = [np.average([n.get(name, np.nan) for n in numbers], weights=sizes) for name in COLUMNS]
        seconds = (time.monotonic() - began) / measured
        print(f"| {variant} | " + " | ".join(f"{mean:.3f}" for mean in means) + f" | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
