"""Every trainer run for a few steps on tiny inputs in the real formats."""

from __future__ import annotations

from dataclasses import dataclass

from hair_pipeline.inputs.catalog import build_catalog
from hair_pipeline.processing import shards
from hair_pipeline.profile import Profile, load_profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.entry import TRAINERS, train
from hair_pipeline.training.latents import encode_shard
from hair_pipeline.training.runs import TrainResult
from hair_pipeline.training.style_vectors import embed_shard


def tiny_profile() -> Profile:
    """The sample profile with two or three steps everywhere."""
    sample = load_profile("sample")
    values = sample.model_dump()
    few = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3}
    values["base_training"] = {"resolution": 64, "vae": few, "unet": few, "recogniser": few, "perceptual": few}
    values["patch_encoder"] |= {"start": "random", "steps": 3, "width": 8, "embedding_dim": 16, "input_size": 32}
    values["classifier"] |= {"start": "random", "steps": 3, "width": 4, "resolution": 64}
    for stage in ("stage1", "stage2"):
        values[stage] |= {"resolution": 64, "max_steps": 4, "batch_size": 4, "validate_every": 2, "checkpoint_every": 2}
        values[stage]["losses"] |= {"pixel_every": 1, "pixel_max_t": 1.0}
    return Profile.model_validate(values)


def process(settings: Settings, profile: Profile) -> list[str]:
    """Everything before training."""
    frame = build_catalog(settings, profile).frame
    names = sorted(frame[frame.accepted].shard.unique())
    for shard in names:
        shards.gather_identity_embeddings(shard, settings, profile)
        shards.make_bald_images(shard, settings, profile)
        shards.make_hair_only_images(shard, settings, profile)
        shards.cut_hair_patches(shard, settings, profile)
    return names


@dataclass(frozen=True)
class Trained:
    settings: Settings
    profile: Profile
    shards: list[str]
    results: dict[str, TrainResult]


def train_all(settings: Settings, profile: Profile) -> Trained:
    names = process(settings, profile)
    results = {}
    for name in TRAINERS:
        if name == "stage1":
            for shard in names:
                encode_shard(shard, settings, profile)
                embed_shard(shard, settings, profile)
        results[name] = train(name, settings, profile)
    return Trained(settings, profile, names, results)
