"""Do Stage 1 and Stage 2 learn? Both are trained on a base whose UNet knows nothing, and on the shipped one.

    uv run hair-pipeline demo                      # first: its processed data are used
    uv run python benchmarks/learning.py [--steps 170]

The shipped base was trained on rendered hair, so that little is left to be learned in the demo's few steps; from a
UNet of random weights behind the same VAE everything has to be. Printed for each stage: squared error of the prediction
in the hair of held-out people, same noise and timesteps, before the first step and after the last. About eight minutes
on two cores for both bases. Nothing is written into the demo's folders.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hair_pipeline.errors import PipelineError
from hair_pipeline.models.attribute_tokens import AttributeTokens
from hair_pipeline.models.base import tiny_base
from hair_pipeline.models.weights import ATTRIBUTE_TOKENS, STAND_IN_BASE
from hair_pipeline.profile import Profile, load_profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.entry import train

_STAGES = ("stage1", "stage2")


def ignorant_base(shipped: Path, folder: Path, seed: int) -> Path:
    """The shipped base with another UNet and attribute tokens, both of random weights, in diffusers layout."""
    for part in ("vae", "scheduler"):
        shutil.copytree(shipped / part, folder / part)
    unet = tiny_base(seed).unet
    unet.save_pretrained(folder / "unet")
    torch.manual_seed(seed)
    AttributeTokens(unet.config.cross_attention_dim).save_pretrained(folder / ATTRIBUTE_TOKENS)
    return folder


def from_nothing(profile: Profile, base: Path, steps: int) -> Profile:
    """The sample profile on another base, with learning rates for a UNet that has everything to learn."""
    values = profile.model_dump()
    values["models"]["base"] = str(base)
    for stage in _STAGES:
        values[stage] |= {"max_steps": steps, "learning_rate": 1e-3, "learning_rate_deep": 1e-3, "ema_decay": 0.98}
    return Profile.model_validate(values)


def borrowed(settings: Settings, root: Path) -> Settings:
    """Settings whose training root is `root` with the demo's processed data and finished networks in it."""
    if not settings.catalog_path.exists():
        raise PipelineError("there is no catalog", file=settings.catalog_path, remedy="run hair-pipeline demo first")
    root.mkdir()
    (root / "processed").symlink_to(settings.processed.absolute(), target_is_directory=True)
    for name in ("patch-encoder", "style-classifier"):
        shutil.copytree(settings.runs / name, root / "runs" / name)
    return settings.model_copy(update={"training_root": root})


def main() -> None:
    """Train both stages twice and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="the demo's folder")
    parser.add_argument("--steps", type=int, default=170, help="of each stage on the base that knows nothing")
    parser.add_argument("--seed", type=int, default=0, help="of its weights")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(2)
    profile = load_profile("sample")
    settings = Settings(
        profile="sample",
        k_hairstyle_root=options.data / "sample" / "k_hairstyle",
        training_face_root=options.data / "sample" / "training_face",
        training_root=options.data / "training",
    )
    print("| base | stage | steps | hair L2 before | after | drop |\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        base = ignorant_base(settings.sample_models_dir / STAND_IN_BASE, root / "base", options.seed)
        for name, values in (("random UNet", from_nothing(profile, base, options.steps)), ("shipped", profile)):
            own = borrowed(settings, root / name.replace(" ", "_"))
            for stage in _STAGES:
                found = train(stage, own, values).metrics
                before, after = found["val_hair_l2_start"], found["val_hair_l2_end"]
                drop = f"{1 - after / before:.0%}"
                print(f"| {name} | {stage} | {found['steps']:.0f} | {before:.3f} | {after:.3f} | {drop} |", flush=True)


if __name__ == "__main__":
    main()
