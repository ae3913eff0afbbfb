"""Outputs of shards that the catalog has no more: all of them, and nothing else."""

from pathlib import Path

import pytest

from hair_pipeline.processing import gone
from hair_pipeline.processing.gone import gone_outputs, remove_outputs
from hair_pipeline.settings import Settings

OURS = {
    "bald_images": [
        "shard_0001/a.jpg",
        "shard_0001/.b.jpg.77.tmp",
        "shard_0001.json",
        "shard_0001.preview.jpg",
        "shard_0001.steps.jpg",
        ".shard_0001.0123456789abcdef.journal/7-ab",
        ".shard_0001.json.0a1b2c3d.tmp",
    ],
    "hair_patches": ["shard_0001.parquet", "shard_0001.json", ".shard_0001.77.tmp.parquet"],
    "latents": ["shard_12345.safetensors", "shard_12345.parquet", "shard_12345.json", "shard_12345.jpg"],
}
KEPT = [
    "catalog.parquet",
    "bald_images/shard_0000.json",
    "bald_images/shard_0000/a.jpg",
    "bald_images/.shard_0000.0123456789abcdef.journal/7-ab",
    "bald_images/.DS_Store",
    "bald_images/._shard_0001.json",
    "bald_images/shard_0001 (copy).json",
    "bald_images/shard_0001.notes.txt",
    "bald_images/shard_0009/.DS_Store",
    "other/shard_0001.parquet",
]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(training_root=tmp_path)
    for name in [*KEPT, *(f"{asset}/{name}" for asset, names in OURS.items() for name in names)]:
        path = settings.processed / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return settings


def files(settings: Settings) -> set[str]:
    return {p.relative_to(settings.processed).as_posix() for p in settings.processed.rglob("*") if p.is_file()}


def test_all_outputs_of_gone_shards_and_nothing_else_are_removed(settings: Settings) -> None:
    found = gone_outputs(settings, ["shard_0000"])
    assert found.keys() == {("bald_images", "shard_0001"), ("hair_patches", "shard_0001"), ("latents", "shard_12345")}
    for paths in found.values():
        remove_outputs(paths)
    assert files(settings) == set(KEPT)
    assert not (settings.processed / "bald_images" / "shard_0001").exists()
    assert gone_outputs(settings, ["shard_0000"]) == {}


def test_what_others_left_keeps_the_folder_alone(settings: Settings) -> None:
    foreign = settings.processed / "bald_images" / "shard_0001" / ".DS_Store"
    foreign.write_bytes(b"")
    for paths in gone_outputs(settings, ["shard_0000"]).values():
        remove_outputs(paths)
    assert files(settings) == {*KEPT, "bald_images/shard_0001/.DS_Store"}
    assert gone_outputs(settings, ["shard_0000"]) == {}


def test_the_manifest_goes_first(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    monkeypatch.setattr(gone, "remove", lambda path: removed.append(path.name))
    remove_outputs(gone_outputs(settings, ["shard_0000"])["latents", "shard_12345"])
    assert removed[0] == "shard_12345.json"
    assert len(removed) == 4
