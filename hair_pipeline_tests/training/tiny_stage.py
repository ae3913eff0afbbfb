"""A stage small enough for tests: random latents on disk, a tiny base, random judges. Also a script that trains it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import UNet2DConditionModel
from lpips import LPIPS
from safetensors.torch import save_file

from hair_pipeline.inputs.members import Members
from hair_pipeline.models.base import Base, tiny_base
from hair_pipeline.models.inpainter import HairInpainter
from hair_pipeline.models.perceptual import PerceptualNet
from hair_pipeline.models.recogniser import FaceRecogniser, SmallFaceNet
from hair_pipeline.models.style_classifier import StyleClassifier
from hair_pipeline.profile import LossesConfig, LossTerm, ModelsConfig, StageConfig
from hair_pipeline.training.context import seed_everything
from hair_pipeline.training.data import StageSources, read_reliable_identities, read_style_vectors
from hair_pipeline.training.latent_store import LatentStore
from hair_pipeline.training.pixel_losses import Judges
from hair_pipeline.training.stages import StageTask
from hair_pipeline.training.trainers.stage import stage_task

SIDE, CELLS, STYLE_DIM = 64, 8, 16
TERMS = ("mask_l2", "identity", "lpips", "gram", "style")


def write_processed(folder: Path, *, people: int = 3, views: int = 2, reliable: bool = True) -> None:
    """Random latents, style vectors and identities of people p0, p1, ...; the last one is held out."""
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    ids = [
        (f"p{p}-{v}", f"p{p}", "validation" if p == people - 1 else "train")
        for p in range(people)
        for v in range(views)
    ]
    n = len(ids)
    hair = torch.zeros(n, SIDE, SIDE)
    hair[:, : SIDE // 2] = 1
    packed = torch.from_numpy(np.stack([np.packbits(mask.numpy() > 0) for mask in hair]))
    cells = torch.zeros(n, CELLS, CELLS, dtype=torch.uint8)
    cells[:, : CELLS // 2] = 255
    face = torch.zeros(n, CELLS, CELLS, dtype=torch.uint8)
    face[:, CELLS // 2 :, 2:6] = 255
    tensors = {
        "photo.latents": torch.randn(n, 4, CELLS, CELLS).half(),
        "photo.bald": torch.randn(n, 2, 4, CELLS, CELLS).half(),
        "photo.repaint": (cells > 0)[:, None].expand(-1, 2, -1, -1).to(torch.uint8).contiguous(),
        "photo.hair": cells,
        "photo.face": face,
        "photo.hair_pixels": packed,
        "photo.box": torch.tensor([12.0, 20.0, 52.0, 62.0]).expand(n, 4).contiguous(),
        "photo.side": torch.tensor(SIDE),
        "hair_only.latents": torch.randn(n, 4, CELLS, CELLS).half(),
        "hair_only.hair": cells.clone(),
        "hair_only.hair_pixels": packed.clone(),
        "hair_only.side": torch.tensor(SIDE),
        "hair_only.empty": torch.zeros(4, CELLS, CELLS).half(),
        "patch.latents": torch.randn(2 * n, 4, CELLS, CELLS).half(),
        "patch.empty": torch.zeros(4, CELLS, CELLS).half(),
        "patch.side": torch.tensor(SIDE),
    }
    rows = [
        {"image_id": i, "person": p, "kind": kind, "row": row, "split": split, "stage2": True}
        for kind in ("photo", "hair_only")
        for row, (i, p, split) in enumerate(ids)
    ]
    rows += [
        {"image_id": i, "person": p, "kind": "patch", "row": 2 * row + k, "split": split, "stage2": True}
        for row, (i, p, split) in enumerate(ids)
        for k in range(2)
    ]
    (folder / "latents").mkdir(parents=True)
    write_catalog(folder, pd.DataFrame(ids, columns=["image_id", "source", "split"]).assign(shard="shard_0000"))
    save_file(tensors, folder / "latents" / "shard_0000.safetensors")
    pd.DataFrame(rows).to_parquet(folder / "latents" / "shard_0000.parquet")
    for asset, column, width in (("style_vectors", "vector", STYLE_DIM), ("identity_embeddings", "embedding", 512)):
        values = random.normal(size=(n, width)).astype(np.float32)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        table = pa.table(
            {
                "image_id": [i for i, _, _ in ids],
                "person": [p for _, p, _ in ids],
                "reliable": [reliable] * n,
                column: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width),
            }
        )
        (folder / asset).mkdir()
        pq.write_table(table, folder / asset / "shard_0000.parquet")


def write_catalog(folder: Path, rows: pd.DataFrame) -> None:
    """The columns of a catalog that say which images count."""
    rows.assign(accepted=True).to_parquet(folder / "catalog.parquet", index=False)


def only(*names: str, **changes: object) -> LossesConfig:
    """Losses of which only the named are on, pixel losses at every step and timestep."""
    terms = {name: LossTerm(weight=1.0 if name in names else 0.0) for name in (*TERMS, "anchor", "context")}
    return LossesConfig(**{**terms, "pixel_every": 1, "pixel_max_t": 1.0, "pixel_batch": 4, **changes})  # type: ignore[arg-type]


def stage_config(**changes: object) -> StageConfig:
    """Two-sample batches, two micro-batches per step, everything in fp32."""
    values: dict[str, object] = {
        "resolution": SIDE,
        "patch_resolution": SIDE,
        "epochs": 1000,
        "max_steps": 8,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "precision": "fp32",
        "gradient_checkpointing": False,
        "ema_decay": 0.9,
        "checkpoint_every": 2,
        "validate_every": 4,
        "gradient_norm_every": 4,
        "workers": 0,
        "losses": only("mask_l2"),
    }
    return StageConfig(**(values | changes))  # type: ignore[arg-type]


def random_judges() -> Judges:
    """Untrained networks of the real kinds."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trunk = LPIPS(pretrained=False, net="alex", pnet_rand=True, verbose=False)
    for head in trunk.lins:
        torch.nn.init.constant_(head.model[-1].weight, 0.2)
    classifier = StyleClassifier("loss", 4, 32).eval().requires_grad_(False)
    return Judges(FaceRecogniser(SmallFaceNet(), 512, "random"), PerceptualNet(trunk, "random", True), classifier)


def stage_base(*, widened: bool = False) -> Base:
    """The base of `tiny_stage`; `widened`: with a UNet that was made for text-to-image."""
    base = tiny_base(0, (8, 8, 16, 16), latent_size=CELLS)
    if not widened:
        return base
    torch.manual_seed(0)
    narrow = UNet2DConditionModel.from_config(base.unet.config | {"in_channels": 4})
    return Base.assemble(base.vae, narrow, base.noise_scheduler, base.null_tokens)


def tiny_stage(
    folder: Path,
    config: StageConfig,
    name: str = "stage2",
    judges: Judges | None = None,
    *,
    base: Base | None = None,
    before: Path | None = None,
) -> StageTask:
    """The real task of a stage on `write_processed`'s data; `before`: the adapters of the stage before."""
    seed_everything(config.seed)
    base = base or stage_base()
    models = ModelsConfig(lora_rank=4, style_tokens=2)
    model = HairInpainter.build(base, models, STYLE_DIM, config.finetune_blocks)
    if before is not None:
        model.load_adapters(before)
    labels = {f"p{p}-{v}": (p % 3, v % 2) for p in range(9) for v in range(9)}
    members = Members.read(folder / "catalog.parquet")
    sources = StageSources(
        LatentStore(folder / "latents", members),
        read_style_vectors(folder / "style_vectors", members),
        read_reliable_identities(folder / "identity_embeddings", members),
        labels,
    )
    kinds = ("photo",) if name == "stage2" else ("hair_only", "patch")
    return stage_task(name, base, model, config, sources, kinds, STYLE_DIM, judges or Judges())
