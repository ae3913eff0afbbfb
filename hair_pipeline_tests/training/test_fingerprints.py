"""Versions follow content, wherever the content is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import write_bytes
from hair_pipeline.inputs.catalog import build_catalog
from hair_pipeline.models.base import load_base
from hair_pipeline.models.outside import outside_version
from hair_pipeline.profile import ModelsConfig, Profile, load_profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.fingerprints import base_version, catalog_version, weights_version
from hair_pipeline_tests.inputs.tiny_inputs import write_tiny_inputs
from hair_pipeline_tests.models.inputs import save_base, tiny_base

UNET = "unet/diffusion_pytorch_model.safetensors"
HUB_ID = "someone/inpainting"
PROFILE = Profile(name="real", models=ModelsConfig(base=HUB_ID))


@pytest.mark.parametrize("place", ["inpainting", HUB_ID])
def test_a_base_in_the_models_folder_counts_by_its_content(tmp_path: Path, place: str) -> None:
    """It is loaded from there instead of from the hub, so its identity is what lies there."""
    settings = Settings(models_dir=tmp_path)
    save_base(tiny_base(), tmp_path / place)
    load_base(HUB_ID, tmp_path)
    before = base_version(settings, PROFILE), base_version(settings, PROFILE, "vae")
    assert before == (weights_version(tmp_path / place), weights_version(tmp_path / place / "vae"))
    save_base(tiny_base(seed=1), tmp_path / place)
    after = base_version(settings, PROFILE), base_version(settings, PROFILE, "vae")
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_what_lies_beside_a_base_and_is_not_loaded_does_not_count(tmp_path: Path) -> None:
    """Who frees the disk of single-file checkpoints, or downloads the folder again, need not train again."""
    settings, folder = Settings(models_dir=tmp_path, training_root=tmp_path / "training"), tmp_path / "inpainting"
    save_base(tiny_base(), folder)

    def versions() -> tuple[str, ...]:
        return (
            base_version(settings, PROFILE),
            base_version(settings, PROFILE, "vae"),
            outside_version("inpainting_base", settings, PROFILE),
        )

    before = versions()
    for name in ("sd-v1-5-inpainting.ckpt", "README.md", ".cache/huggingface/download/unet.metadata"):
        write_bytes(folder / name, b"beside")
    for name in ("safety_checker/model.safetensors", "unet/diffusion_pytorch_model.bin", "vae/.DS_Store"):
        write_bytes(folder / name, b"beside")
    for variant in ("fp16", "non_ema"):  # Stable Diffusion 1.5 has both beside the UNet
        shutil.copyfile(folder / UNET, (folder / UNET).with_suffix(f".{variant}.safetensors"))
    assert versions() == before
    for path in folder.glob("unet/*.safetensors"):
        path.rename(path.with_name(f"other.fp16{path.suffix}"))
    assert versions()[0] != before[0]
    assert versions()[1] == before[1]
    assert versions()[2] != before[2]


def test_a_base_on_the_hub_counts_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, and by the cached one."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    settings = Settings(models_dir=tmp_path)
    with pytest.raises(PipelineError, match="the base model cannot be loaded"):
        base_version(settings, PROFILE)
    cached = tmp_path / "cache" / "models--someone--inpainting"
    for commit in ("a" * 40, "b" * 40):
        save_base(tiny_base(), cached / "snapshots" / commit)
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / "main").write_text(commit)
        assert base_version(settings, PROFILE) == commit


@pytest.mark.parametrize("column", ["has_face", "has_bangs", "curl_class", "length", "color", "mask_origin", "stage2"])
def test_a_label_that_a_training_reads_makes_another_catalog(tmp_path: Path, column: str) -> None:
    """Profile values change labels of the same files: a face may no longer be sure enough to be one."""
    settings = write_tiny_inputs(tmp_path, people=2, views=2).settings()
    build_catalog(settings, load_profile("sample"))
    before, table = catalog_version(settings), pq.read_table(settings.catalog_path)
    place, field = table.schema.get_field_index(column), table.schema.field(column)
    value = "other" if pa.types.is_string(field.type) else not table[column][0].as_py()
    changed = pa.array([value, *table[column].to_pylist()[1:]], field.type)
    pq.write_table(table.set_column(place, field, changed), settings.catalog_path)
    assert catalog_version(settings) != before


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no weights"):
        weights_version(tmp_path / "nothing")
