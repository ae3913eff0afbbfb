"""How well the sample's base draws curl and fringe when it is told the true labels.

    uv run python benchmarks/drawing.py [--guidance 1 1.7 3]

Needs a finished `hair-pipeline demo` (HAIR_PIPELINE_TRAINING_ROOT says where). The cases of the evaluation report, the
untrained base with the attribute tokens that it was trained with in place of style vectors, judged by the evaluation
classifier; the demo's Stage 2 beside it, and the photos themselves.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor

from hair_pipeline.evaluation.cases import Case, load_cases, plan_validation
from hair_pipeline.evaluation.contenders import Drawing, ModelContender, stage2_current, untrained
from hair_pipeline.evaluation.judges import load_judges
from hair_pipeline.evaluation.metrics import learned
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.members import Members
from hair_pipeline.models.adapters import IDENTITY_DIM
from hair_pipeline.models.attribute_tokens import AttributeTokens, attribute_classes
from hair_pipeline.models.weights import ATTRIBUTE_TOKENS, base_reference
from hair_pipeline.settings import load_settings
from hair_pipeline.training.data import read_reliable_identities, read_style_vectors

Draw = Callable[[Sequence[Case]], list[np.ndarray]]


def told(base: ModelContender, tokens: AttributeTokens, labels: Any, guidance: float) -> Draw:
    """Draw with the base and the attribute tokens of each case's reference."""

    def draw(cases: Sequence[Case]) -> list[np.ndarray]:
        classes = attribute_classes(labels.loc[[case.reference.image_id for case in cases]])
        prompts = tokens(classes).detach()
        empty = torch.zeros_like(prompts)

        def conditions(*_: Any) -> tuple[Tensor, Tensor, Tensor]:
            both = torch.cat([empty, prompts])
            return both, torch.zeros(len(both), IDENTITY_DIM), torch.zeros(len(both))

        base.pipeline._conditions = conditions
        base.pipeline.register_to_config(conditioned=True)
        config = base.profile.evaluation.model_copy(update={"guidance_scale": guidance + 1e-6})
        contender = ModelContender(
            base.label,
            base.version,
            base.pipeline,
            None,
            base.resolution,
            base.profile.model_copy(update={"evaluation": config}),
        )
        return finals(contender.draw(cases))

    return draw


def finals(drawings: Sequence[Drawing | str]) -> list[np.ndarray]:
    """The finished pictures."""
    return [drawing.final for drawing in drawings if isinstance(drawing, Drawing)]


def main() -> None:
    """Draw, judge and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidance", nargs="+", type=float, default=[1.0, 1.7, 3.0])
    arguments = parser.parse_args()
    settings = load_settings()
    profile = settings.profile_values
    catalog = read_catalog(settings.catalog_path)
    members = Members.read(settings.catalog_path)
    styles = read_style_vectors(settings.processed / "style_vectors", members)
    identities = read_reliable_identities(settings.processed / "identity_embeddings", members)
    plan = plan_validation(catalog, styles, profile.evaluation.max_images)
    classifier = load_judges(settings, profile).classifier.network
    assert classifier is not None
    folder = Path(str(base_reference(settings, profile))) / ATTRIBUTE_TOKENS
    tokens = AttributeTokens.from_pretrained(folder, local_files_only=True).float()
    base, stage2 = untrained(settings, profile), stage2_current(settings, profile, styles)
    labels = catalog.set_index("image_id", drop=False)
    ways: dict[str, Draw] = {"the photos themselves": lambda cases: [case.reference.image for case in cases]}
    ways |= {
        f"base told the labels, guidance {value:g}": told(base, tokens, labels, value) for value in arguments.guidance
    }
    ways["the demo's Stage 2"] = lambda cases: finals(stage2.draw(cases))
    device = torch.device("cpu")
    own = [(index, index) for index in range(len(plan.rows))]
    transfer = [(index, donor) for index, donor in enumerate(plan.donors) if donor is not None]
    print("| way | own style: curl | bangs | n | another's style: curl | bangs | n |\n|---|---|---|---|---|---|---|")
    for name, draw in ways.items():
        cells = []
        for pairs in (own, transfer):
            hits: dict[str, list[bool]] = {"curl": [], "bangs": []}
            for cases in load_cases(plan, pairs, identities, settings, profile, {}):
                seen = learned.predicted_classes(classifier, draw(cases), device)
                for head, asked in (("curl", [c.curl for c in cases]), ("bangs", [c.bangs for c in cases])):
                    known = [i for i, value in enumerate(asked) if value is not None]
                    hits[head] += [int(seen[head][i]) == asked[i] for i in known]
            cells += [f"{np.mean(hits['curl']):.2f} | {np.mean(hits['bangs']):.2f} | {len(hits['curl'])}"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
