"""What each way of removing hair gives away of the old hairstyle.

    uv run python benchmarks/leakage.py [--people 60] [--views 5]

Rendered people; a linear probe on colours and gradients, cross-validated over people. Balanced accuracy with its 95%
interval, resampled by person.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hair_pipeline.inputs.catalog import build_catalog
from hair_pipeline.inputs.samples import load_sample
from hair_pipeline.processing.leakage import TARGETS, Score, choose_rows, measure
from hair_pipeline.profile import BaldConfig, Profile
from hair_pipeline.sample.write import write_sample
from hair_pipeline.settings import Settings

WAYS = {
    "telea": BaldConfig(),
    "navier_stokes": BaldConfig(method="navier_stokes"),
    "gaussian_blur": BaldConfig(method="gaussian_blur"),
    "gray": BaldConfig(method="gray"),
    "telea, growth 0": BaldConfig(growth=0),
    "telea, growth 0.15": BaldConfig(growth=0.15),
    "telea, hide_forehead": BaldConfig(hide_forehead=True),
    "telea, hide_forehead, hide_beside_jaw": BaldConfig(hide_forehead=True, hide_beside_jaw=True),
    "gaussian_blur, hide_forehead, hide_beside_jaw": BaldConfig(
        method="gaussian_blur", hide_forehead=True, hide_beside_jaw=True
    ),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--people", type=int, default=60)
    arguments.add_argument("--views", type=int, default=5)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="leakage-") as folder:
        root = Path(folder)
        write_sample(root, people=given.people, views=given.views, customers=0)
        settings = Settings(
            k_hairstyle_root=root / "k_hairstyle",
            training_face_root=root / "training_face",
            training_root=root / "training",
        )
        build_catalog(settings, Profile(name="benchmark"))
        run(settings)


def run(settings: Settings) -> None:
    """Measure every way and print the table."""
    rows = choose_rows(settings)
    samples = [load_sample(row, settings) for row in rows.itertuples()]
    print(f"{len(samples)} photos of {rows.source.nunique()} people\n")
    print("| way | read from | " + " | ".join(TARGETS) + " |\n|---|---|" + "---|" * len(TARGETS))
    for name, config in WAYS.items():
        found = measure(rows, samples, config)
        for what, scores in (("bald image", found.bald), ("mask", found.mask)):
            print(f"| {name} | {what} | " + " | ".join(shown(scores.get(target)) for target in TARGETS) + " |")
    chances = (score.chance if (score := found.bald.get(target)) else None for target in TARGETS)
    print("| chance | | " + " | ".join("" if chance is None else f"{chance:.2f}" for chance in chances) + " |")


def shown(score: Score | None) -> str:
    """Accuracy and interval."""
    return "not measured" if score is None else f"{score.accuracy:.2f} ({score.low:.2f}-{score.high:.2f})"


if __name__ == "__main__":
    main()
