"""Hashes of the loss curves and weights of every trainer: run it on two revisions, and compare what they print.

    uv run python benchmarks/loss_curves.py --steps 20 [--print]

Every trainer runs through its real entry point for so many steps on drawn inputs (a few seconds each on one core). A
change that should not change results prints the same lines on the same machine. One optimizer step takes one
micro-batch, except with `--accumulation N` for the two stages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hair_pipeline.inputs.catalog import build_catalog
from hair_pipeline.processing import shards
from hair_pipeline.profile import Profile, load_profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.entry import TRAINERS, train
from hair_pipeline.training.latents import encode_shard
from hair_pipeline.training.style_vectors import embed_shard
from hair_pipeline_tests.inputs.tiny_inputs import write_tiny_inputs


def small_profile(steps: int, accumulation: int) -> Profile:
    """The sample profile and the recipe at 64 pixels, every trainer for `steps` steps, pixel losses at every step."""
    values = load_profile("sample").model_dump()
    brief = {"steps": steps, "batch_size": 4, "learning_rate": 1e-3}
    values["base_training"] = {"resolution": 64, "vae": brief, "unet": brief, "recogniser": brief, "perceptual": brief}
    values["patch_encoder"] |= {"start": "random", "steps": steps, "width": 8, "embedding_dim": 16, "input_size": 32}
    values["classifier"] |= {"start": "random", "steps": steps, "width": 4, "resolution": 64}
    for stage in ("stage1", "stage2"):
        values[stage] |= {"resolution": 64, "max_steps": steps, "batch_size": 4, "validate_every": steps}
        values[stage] |= {"gradient_accumulation_steps": accumulation}
        values[stage]["losses"] |= {"pixel_every": 1, "pixel_max_t": 1.0}
    return Profile.model_validate(values)


def process(settings: Settings, profile: Profile) -> list[str]:
    """Everything before training; the shards' names."""
    frame = build_catalog(settings, profile).frame
    names = sorted(frame[frame.accepted].shard.unique())
    for shard in names:
        shards.gather_identity_embeddings(shard, settings, profile)
        shards.make_bald_images(shard, settings, profile)
        shards.make_hair_only_images(shard, settings, profile)
        shards.cut_hair_patches(shard, settings, profile)
    return names


def loss_lines(run_dir: Path) -> list[str]:
    """Every logged loss of a run, one line per network and step, exactly as logged."""
    lines = []
    for path in sorted(run_dir.glob("*/losses.jsonl")):
        for line in path.read_text().splitlines():
            values = json.loads(line)
            losses = {name: value for name, value in sorted(values.items()) if name.startswith("loss/")}
            lines.append(json.dumps({"network": path.parent.name, "step": values["step"]} | losses))
    return lines


def weights_hash(run_dir: Path) -> str:
    """Hash of weights and averages in the last checkpoint of each network of a run."""
    digest = hashlib.sha256()
    for folder in sorted(run_dir.glob("*/checkpoints")):
        newest = max(folder.glob("step_*"))
        for name in ("weights", "ema"):
            for key, tensor in sorted(load_file(newest / f"{name}.safetensors").items()):
                digest.update(key.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def main() -> None:
    """Train everything and print a line per trainer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--accumulation", type=int, default=1, help="of the two stages")
    parser.add_argument("--print", action="store_true", help="also print every step's losses")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    profile = small_profile(options.steps, options.accumulation)
    with tempfile.TemporaryDirectory() as root:
        settings = write_tiny_inputs(Path(root), 4, 2, back_view=False).settings()
        names = process(settings, profile)
        print(f"{'trainer':<18} {'losses':<18} weights and EMA ({options.steps} steps)")
        for trainer in TRAINERS:
            if trainer == "stage1":
                for shard in names:
                    encode_shard(shard, settings, profile)
                    embed_shard(shard, settings, profile)
            result = train(trainer, settings, profile)
            lines = loss_lines(result.run_dir)
            curve = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
            print(f"{trainer:<18} {curve:<18} {weights_hash(result.run_dir)}", flush=True)
            if options.print:
                print("\n".join(lines))


if __name__ == "__main__":
    main()
