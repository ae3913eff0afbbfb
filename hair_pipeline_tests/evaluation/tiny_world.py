"""A training root as it stands before evaluation, made in seconds: tiny inputs, random networks, "finished" runs.

Belongs here: the fixture of the evaluation and release tests. Does not belong here: any assertion.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torchvision

from hair_pipeline.evaluation.cases import Case
from hair_pipeline.evaluation.customers import Problems, customer_cases, find_customers
from hair_pipeline.evaluation.styles import PatchStyles
from hair_pipeline.inputs.catalog import build_catalog, read_catalog
from hair_pipeline.inputs.samples import load_sample
from hair_pipeline.models.base import load_base, tiny_base
from hair_pipeline.models.inpainter import HairInpainter
from hair_pipeline.models.patch_encoder import PatchEncoder
from hair_pipeline.models.perceptual import save_stand_in
from hair_pipeline.models.recogniser import SmallFaceNet, export_onnx
from hair_pipeline.models.style_classifier import StyleClassifier
from hair_pipeline.models.weights import STAND_IN_PERCEPTUAL, STAND_IN_RECOGNISER
from hair_pipeline.processing.shards import gather_identity_embeddings
from hair_pipeline.profile import Profile, StyleVectorConfig, load_profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.fingerprints import weights_version
from hair_pipeline.training.runs import TrainResult
from hair_pipeline_tests.inputs.tiny_inputs import TinyInputs, write_tiny_inputs
from hair_pipeline_tests.models.inputs import save_base


@dataclass(frozen=True)
class World:
    """Where it stands and how it is configured."""

    inputs: TinyInputs
    settings: Settings
    profile: Profile


def make_world(root: Path, *, people: int = 8, customers: int = 6, blurred_people: int = 0) -> World:
    """Write everything under `root`."""
    torch.set_num_threads(1)
    inputs = write_tiny_inputs(
        root, people=people, views=2, size=128, customers=customers, blurred_people=blurred_people
    )
    profile = tiny_profile()
    settings = inputs.settings(sample_models_dir=root / "sample_models")
    build_catalog(settings, profile)
    catalog = read_catalog(settings.catalog_path)
    for shard in sorted(set(catalog["shard"].dropna())):
        gather_identity_embeddings(shard, settings, profile)
    _write_base(settings)
    _write_style(settings, profile, catalog)
    write_stage2(settings, profile, seed=0)
    return World(inputs, settings, profile)


def cases_of(world: World) -> list[Case]:
    """The cases of the world's customers."""
    found = find_customers(world.inputs.customers, world.settings, Problems())
    return [case for batch in customer_cases(found, world.profile, Problems()) for case in batch]


def tiny_profile() -> Profile:
    """The sample profile, smaller."""
    profile = load_profile("sample")
    parts = {
        "inputs": profile.inputs.model_copy(update={"validation_fraction": 0.45}),
        "processing": profile.processing.model_copy(
            update={
                "size": 128,
                "patches": profile.processing.patches.model_copy(update={"sizes": (16,), "per_image": 4}),
            }
        ),
        "stage2": profile.stage2.model_copy(update={"resolution": 64}),
        "evaluation": profile.evaluation.model_copy(
            update={"steps": 2, "batch_size": 4, "grid_rows": 3, "leakage_images": 2}
        ),
        "models": profile.models.model_copy(update={"lora_rank": 2}),
        "style_vectors": StyleVectorConfig(source="patch_encoder"),
    }
    return profile.model_copy(update=parts)


def _write_base(settings: Settings) -> None:
    torch.manual_seed(0)
    base = tiny_base(0, vae_channels=(8, 16), latent_size=32)
    save_base(base, settings.sample_models_dir / "inpainting")
    recogniser = SmallFaceNet()
    recogniser(torch.randn(16, 3, 112, 112))  # so that the running statistics are not trivial
    export_onnx(recogniser, settings.sample_models_dir / STAND_IN_RECOGNISER)
    features = torchvision.models.alexnet(weights=None).features
    save_stand_in(features.state_dict(), settings.sample_models_dir / STAND_IN_PERCEPTUAL)


def _write_style(settings: Settings, profile: Profile, catalog: pd.DataFrame) -> None:
    encoder = PatchEncoder("resnet", 8, 16, 16)
    finish_run("patch-encoder", settings, lambda folder: encoder.save(folder / "style_patch_encoder.pt"))

    def classifiers(folder: Path) -> None:
        for variant in ("loss", "evaluation"):
            StyleClassifier(variant, 4, 64).save(folder / variant)  # type: ignore[arg-type]

    finish_run("style-classifier", settings, classifiers)
    styles = PatchStyles(encoder, profile.processing.patches)
    rows = [row for row in catalog.itertuples() if row.accepted]
    vectors = [(row, styles.vector(load_sample(row, settings, profile.processing.size))) for row in rows]
    found = [(row, vector) for row, vector in vectors if vector is not None]
    flat = np.concatenate([vector for _, vector in found])
    table = pa.table(
        {
            "image_id": [row.image_id for row, _ in found],
            "person": [row.source for row, _ in found],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), 16),
        }
    )
    (settings.processed / "style_vectors").mkdir(parents=True)
    pq.write_table(table, settings.processed / "style_vectors" / "shard_0000.parquet")


def write_stage2(settings: Settings, profile: Profile, seed: int, style_dim: int = 16) -> str:
    """Random adapters that do change the picture, as a finished Stage 2 run; returns the short version."""
    torch.manual_seed(seed)
    base = load_base(settings.sample_models_dir / "inpainting", settings.models_dir)
    model = HairInpainter.build(base, profile.models, style_dim=style_dim)
    with torch.no_grad():
        for parameter in model.named_trainable().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return finish_run("stage2", settings, lambda folder: model.save_adapters(folder), name=f"seed{seed}").version[:12]


def finish_run(trainer: str, settings: Settings, write, name: str = "run") -> TrainResult:  # type: ignore[no-untyped-def]
    """Pretend that a training ended: its final folder and the pointer to it."""
    run = settings.runs / trainer / name
    final = run / "final"
    final.mkdir(parents=True, exist_ok=True)
    write(final)
    result = TrainResult(trainer, name, run, final, weights_version(final), "data", {}, [])
    result.save(settings.runs / trainer / "current.json", settings.training_root)
    return result
