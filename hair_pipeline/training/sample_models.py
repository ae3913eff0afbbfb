"""Training of data/sample_models from nothing, by one command: render, catalogue, train, measure, write the card.

Belongs here: the order of the recipe's steps and the bundle's files. Does not belong here: the recipe's numbers
(`sample.recipe`, `sample/recipe.yaml`) and the networks' own training (`trainers`).

The bundle:
    inpainting/{vae,unet,scheduler}/      a base in diffusers layout, weights stored in half precision
    inpainting/attribute_tokens/          what it was told instead of prompts (`models.attribute_tokens`)
    face_recogniser.onnx                  (N, 3, 112, 112) -> (N, 512)
    perceptual_alex.safetensors           a state dict of lpips.LPIPS(net="alex"); also the feature extractor's weights
    style_patch_encoder.safetensors       where the patch encoder of the sample profile starts from
    style_classifier/                     where the style classifiers of the sample profile start from
    card.json, README.md                  recipe, settings, seeds, times, measured quality, SHA-256 of every file
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from hair_pipeline.files import hash_file, read_json, write_bytes, write_json
from hair_pipeline.inputs.catalog import build_catalog, read_catalog
from hair_pipeline.models.attribute_tokens import AttributeTokens
from hair_pipeline.models.patch_encoder import PATCH_ENCODER_FILE, PatchEncoder
from hair_pipeline.models.perceptual import read_perceptual
from hair_pipeline.models.weights import (
    ATTRIBUTE_TOKENS,
    STAND_IN_BASE,
    STAND_IN_CLASSIFIER,
    STAND_IN_PATCH_ENCODER,
    STAND_IN_PERCEPTUAL,
    STAND_IN_RECOGNISER,
)
from hair_pipeline.processing.shards import cut_hair_patches, gather_identity_embeddings
from hair_pipeline.profile import Profile
from hair_pipeline.sample.recipe import FACES, PEOPLE, Rendering, curl_triplets
from hair_pipeline.settings import Settings
from hair_pipeline.training.entry import train
from hair_pipeline.training.runs import TrainResult, environment, fresh_folder
from hair_pipeline.training.triplets import ranked_rightly

CARD = "card.json"
_ON_PEOPLE = ("inpainting-vae", "inpainting-unet", "perceptual-trunk", "patch-encoder")
_ON_FACES = ("face-recogniser", "style-classifier")
"""Trained where every photo shows another hairstyle: eight times as many as the other people have."""


def train_sample_models(
    out: Path,
    work: Path,
    profile: Profile,
    *,
    people: Rendering = PEOPLE,
    faces: Rendering = FACES,
    triplets: int = 24,
) -> dict[str, Any]:
    """Run the recipe. Interrupted, it goes on where it stopped; what is finished is not done again.

    Args:
        out: the bundle's folder; replaced as a whole once everything is trained and measured.
        work: rendered inputs and training runs (about 4 GB).
        profile: `sample.recipe.recipe_profile()`.
        people, faces: who is rendered.
        triplets: people whose hair the perceptual trunk is measured on.

    Returns:
        The card, as written to `out/card.json`.

    Raises:
        PipelineError: a step failed; the message says which file and what to do.
    """
    on_people = _inputs(work / "people", people, profile)
    on_faces = _inputs(work / "faces", faces, profile)
    for shard in _shards(on_people):
        cut_hair_patches(shard, on_people, profile)
    for shard in _shards(on_faces):
        gather_identity_embeddings(shard, on_faces, profile)
    results = {name: train(name, on_people, profile) for name in _ON_PEOPLE}
    _lend(results["inpainting-vae"], on_people, on_faces)
    results |= {name: train(name, on_faces, profile) for name in _ON_FACES}
    return assemble(out, profile, {"people": people, "faces": faces}, results, triplets)


def assemble(
    out: Path, profile: Profile, renderings: dict[str, Rendering], results: dict[str, TrainResult], triplets: int
) -> dict[str, Any]:
    """Put finished trainings together: weights, measured quality, card. Returns the card."""
    with fresh_folder(out) as folder:
        _collect(folder, {name: result.final_dir for name, result in results.items()})
        quality = {name: dict(result.metrics) for name, result in results.items()}
        trunk = read_perceptual(folder / STAND_IN_PERCEPTUAL, "alex", "stand-in alex", is_stand_in=True)
        quality["perceptual-trunk"] |= ranked_rightly(trunk, curl_triplets(triplets))
        card = _card(folder, profile, renderings, results, quality)
        write_json(folder / CARD, card)
        write_bytes(folder / "README.md", _readme(card).encode())
    return card


def _inputs(folder: Path, rendering: Rendering, profile: Profile) -> Settings:
    """Rendered and catalogued inputs with a training root of their own."""
    rendering.write(folder / "sample")
    settings = Settings(
        k_hairstyle_root=folder / "sample" / "k_hairstyle",
        training_face_root=folder / "sample" / "training_face",
        training_root=folder / "training",
    )
    build_catalog(settings, profile)
    return settings


def _shards(settings: Settings) -> list[str]:
    return list(read_catalog(settings.catalog_path).query("accepted").shard.unique())


def _lend(result: TrainResult, owner: Settings, borrower: Settings) -> None:
    """Make a finished training current under other inputs too."""
    place = result.final_dir.relative_to(owner.runs)
    shutil.copytree(result.final_dir, borrower.runs / place, dirs_exist_ok=True)
    record = Path(result.name) / "current.json"
    shutil.copyfile(owner.runs / record, borrower.runs / record)


def _collect(folder: Path, finals: dict[str, Path]) -> None:
    """Copy the trained networks into the bundle; the base's weights are halved."""
    base, trained = folder / STAND_IN_BASE, finals["inpainting-unet"] / STAND_IN_BASE
    parts = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, ATTRIBUTE_TOKENS: AttributeTokens}
    for name, kind in parts.items():
        network = kind.from_pretrained(trained / name, local_files_only=True, use_safetensors=True)
        network.to(torch.float16).save_pretrained(base / name)
        config = read_json(base / name / "config.json")
        config.pop("_name_or_path", None)  # of the machine it was trained on
        write_json(base / name / "config.json", config)
    shutil.copytree(trained / "scheduler", base / "scheduler")
    shutil.copyfile(finals["perceptual-trunk"] / STAND_IN_PERCEPTUAL, folder / STAND_IN_PERCEPTUAL)
    shutil.copyfile(finals["face-recogniser"] / STAND_IN_RECOGNISER, folder / STAND_IN_RECOGNISER)
    PatchEncoder.load(finals["patch-encoder"] / PATCH_ENCODER_FILE).save(folder / STAND_IN_PATCH_ENCODER)
    shutil.copytree(finals["style-classifier"], folder / STAND_IN_CLASSIFIER)


def _card(
    folder: Path,
    profile: Profile,
    renderings: dict[str, Rendering],
    results: dict[str, TrainResult],
    quality: dict[str, dict[str, float]],
) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    about = environment()
    return {
        "recipe": "hair-pipeline sample-models",
        "data": {
            name: {
                "people": r.people,
                "views": r.views,
                "seed": r.seed,
                "faces": r.faces,
                "held_out": profile.inputs.validation_fraction,
            }
            for name, r in renderings.items()
        },
        "settings": profile.model_dump(mode="json", include={"base_training", "classifier", "patch_encoder"}),
        "training_seconds": {name: round(values.get("seconds", 0.0)) for name, values in quality.items()},
        "quality": {
            name: {key: round(value, 5) for key, value in values.items() if key != "seconds"}
            for name, values in quality.items()
        },
        "trained_on": {name: result.data_version for name, result in results.items()},
        "environment": {key: about[key] for key in ("python", "packages", "cpus")},
        "files": {path.relative_to(folder).as_posix(): hash_file(path) for path in files},
        "bytes": sum(path.stat().st_size for path in files),
    }


def _readme(card: dict[str, Any]) -> str:
    lines = [
        "# Sample models",
        "",
        "Small networks that stand in for downloads under the profile `sample`. They were trained on rendered people",
        "only, by `hair-pipeline sample-models` (recipe: `hair_pipeline/sample/recipe.yaml`), and know nothing of",
        "photographs: numbers made with them must not be set beside published FID, LPIPS or ArcFace values.",
        "Apache-2.0, like the code.",
        "",
        f"{card['bytes'] / 1e6:.1f} MB; all of `card.json` (settings, seeds, data, times, SHA-256 of every file) is",
        "machine-readable. Measured on held-out people:",
        "",
        "| network | training, s | measure | value |",
        "|---|---|---|---|",
    ]
    for name, values in card["quality"].items():
        seconds = card["training_seconds"][name] or ""
        lines += [f"| {name} | {seconds} | {key} | {value:g} |" for key, value in values.items()]
    return "\n".join(lines) + "\n"
