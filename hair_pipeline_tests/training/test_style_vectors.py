"""Style vectors where there is little hair: one enlarged window instead of patches, and none below half a patch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from hair_pipeline.evaluation.styles import PatchStyles
from hair_pipeline.files import encode_image, write_bytes
from hair_pipeline.inputs.samples import Sample
from hair_pipeline.models.patch_encoder import PatchEncoder
from hair_pipeline.processing.patches import cut_patches
from hair_pipeline.profile import PatchConfig, load_profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.style_vectors import ClipSource, PatchEncoderSource
from hair_pipeline_tests.evaluation.tiny_world import finish_run

SIDE, PATCHES = 160, PatchConfig(sizes=(64,))
WIDTHS = {"thick": 90, "thin": 40, "stray": 20}
"""Image -> width of its strip of hair in pixels."""


def photo_of(image_id: str) -> tuple[np.ndarray, np.ndarray]:
    photo = np.random.default_rng(len(image_id)).integers(1, 254, (SIDE, SIDE, 3), dtype=np.uint8)
    hair = np.zeros((SIDE, SIDE), bool)
    hair[10:, 20 : 20 + WIDTHS[image_id]] = True
    return photo, hair


@pytest.fixture
def source(tmp_path: Path) -> PatchEncoderSource:
    torch.manual_seed(0)
    settings = Settings(training_root=tmp_path)
    encoder = PatchEncoder("resnet", 8, 16, 16)
    finish_run("patch-encoder", settings, lambda folder: encoder.save(folder / "style_patch_encoder.pt"))
    rows = []
    for image_id in WIDTHS:
        photo, hair = photo_of(image_id)
        rgba = np.dstack([photo * hair[..., None], hair * np.uint8(255)])
        write_bytes(settings.processed / "hair_only_images" / "s" / f"{image_id}.png", encode_image(rgba, ".png"))
        found = cut_patches(photo, hair, image_id, PATCHES)
        rows += [{"image_id": image_id, "image": encode_image(patch.image, ".png")} for patch in found]
    (settings.processed / "hair_patches").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), settings.processed / "hair_patches" / "s.parquet")
    return PatchEncoderSource(settings, PATCHES)


def test_too_little_hair_for_a_patch_gives_one_enlarged_window(source: PatchEncoderSource) -> None:
    embedded = source.embed("s", pd.DataFrame({"image_id": list(WIDTHS)}))
    assert embedded.vectors.keys() == {"thick", "thin"}
    assert embedded.patches.keys() == {"thick"}
    assert embedded.windows == {"thin": 40}
    assert not embedded.failed
    assert embedded.vectors["thin"].norm() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("image_id", list(WIDTHS))
def test_a_customers_photo_gives_the_same_vector(source: PatchEncoderSource, image_id: str) -> None:
    photo, hair = photo_of(image_id)
    sample = Sample(image_id, "p", photo, hair, np.zeros_like(hair), None)
    found = PatchStyles(source.encoder, PATCHES).vector(sample)
    expected = source.embed("s", pd.DataFrame({"image_id": list(WIDTHS)})).vectors.get(image_id)
    assert (found is None) == (expected is None) == (image_id == "stray")
    if found is not None and expected is not None:
        assert found == pytest.approx(expected.numpy(), abs=1e-5)


def test_clip_gives_its_own_image_embeddings_and_is_known_by_what_is_loaded_of_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPVisionConfig(**small, image_size=32, patch_size=8, projection_dim=12)
    network = CLIPVisionModelWithProjection(config).eval()
    network.save_pretrained(tmp_path / "clip")
    profile = load_profile("sample")
    profile = profile.model_copy(update={"models": profile.models.model_copy(update={"clip": "clip"})})
    settings = Settings(models_dir=tmp_path, training_root=tmp_path)
    source = ClipSource(settings, profile)
    assert (source.dim, source.side) == (12, 32)

    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    ready = CLIPImageProcessor(do_resize=False, do_center_crop=False)(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = network(ready).image_embeds
        found = source.features(torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1)
    assert torch.allclose(found, expected, atol=1e-5)

    (tmp_path / "clip" / "README.md").write_text("from the hub")
    assert ClipSource(settings, profile).version == source.version
    with torch.no_grad():
        network.visual_projection.weight.add_(1)
    network.save_pretrained(tmp_path / "clip")
    assert ClipSource(settings, profile).version != source.version
