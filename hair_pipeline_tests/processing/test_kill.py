"""Killed in the middle of a shard and run again: the same bytes, and nothing that was finished is done again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hair_pipeline.inputs.catalog import build_catalog, read_catalog
from hair_pipeline.processing import journal, work
from hair_pipeline.processing.shards import IMAGE_PARTS, make_image_parts
from hair_pipeline.profile import PatchConfig, ProcessingConfig, Profile
from hair_pipeline.settings import Settings
from hair_pipeline_tests.inputs.tiny_inputs import write_tiny_inputs

PROFILE = Profile(name="test", processing=ProcessingConfig(size=128, patches=PatchConfig(sizes=(32, 16), per_image=3)))
SHARD = "shard_0000"
SLOW = """
import sys, time
from pathlib import Path
from hair_pipeline.processing import work
from hair_pipeline_tests.processing import test_kill
from hair_pipeline.settings import Settings

def slowed(made, picture, config, folder):
    time.sleep(0.02)
    return made(picture, config, folder)

for asset, maker in dict(work.MAKERS).items():
    work.MAKERS[asset] = lambda *arguments, maker=maker: slowed(maker, *arguments)
settings = Settings(k_hairstyle_root=sys.argv[1], training_face_root=sys.argv[2], training_root=sys.argv[3])
test_kill.make_image_parts(test_kill.SHARD, settings, test_kill.PROFILE)
"""
"""The product's own function, slowed down so that there is time to kill it."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    inputs = write_tiny_inputs(tmp_path, people=5, views=3, size=160, back_view=True)
    build_catalog(inputs.settings(), PROFILE)
    return inputs.settings()


def outputs(settings: Settings) -> dict[str, bytes]:
    """Everything but manifests, which hold timings."""
    files = (path for path in settings.processed.rglob("*") if path.is_file() and path.suffix != ".json")
    return {path.relative_to(settings.processed).as_posix(): path.read_bytes() for path in files}


def finished(settings: Settings, asset: str) -> dict[str, int]:
    """Image id -> inode of its file (0 for a table), as the journals of a killed run say."""
    found: dict[str, int] = {}
    for folder in (settings.processed / asset).glob(f".{SHARD}.*.journal"):
        for record in journal.read(folder):
            file = record.facts["file"]
            path = settings.processed / asset / SHARD / (file[0] if file else "")
            found[record.facts["image_id"]] = path.stat().st_ino if file else 0
    return found


def kill_in_the_middle(settings: Settings, wanted: int) -> None:
    """Run the shard in a process of its own and SIGKILL it when so many images are finished."""
    roots = (settings.k_hairstyle_root, settings.training_face_root, settings.training_root)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, roots)], cwd=Path(__file__).parents[2], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while len(finished(settings, IMAGE_PARTS[-1])) < wanted:
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_and_run_again_gives_the_same_bytes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = settings.model_copy(update={"training_root": settings.training_root.with_name("undisturbed")})
    build_catalog(undisturbed, PROFILE)
    expected = make_image_parts(SHARD, undisturbed, PROFILE)

    for wanted in (3, 9):
        kill_in_the_middle(settings, wanted)
        assert not (settings.processed / "bald_images" / f"{SHARD}.json").exists()
    done = {asset: finished(settings, asset) for asset in IMAGE_PARTS}
    made_again: dict[str, list[str]] = {asset: [] for asset in IMAGE_PARTS}

    def noted(asset: str, maker: work.Maker) -> work.Maker:
        def make(picture: work.Picture, config: ProcessingConfig, folder: Path | None) -> tuple[work.Made, bytes]:
            made_again[asset].append(picture.row.image_id)
            return maker(picture, config, folder)

        return make

    monkeypatch.setattr(work, "MAKERS", {asset: noted(asset, maker) for asset, maker in work.MAKERS.items()})
    reports = make_image_parts(SHARD, settings, PROFILE)
    for asset in IMAGE_PARTS:
        assert len(done[asset]) >= 9
        assert not set(made_again[asset]) & set(done[asset])
        assert len(made_again[asset]) + len(done[asset]) == 15
        assert reports[asset].data_version == expected[asset].data_version
    for asset in IMAGE_PARTS[:2]:
        for path in (settings.processed / asset / SHARD).iterdir():
            assert done[asset].get(path.stem, path.stat().st_ino) == path.stat().st_ino
    assert outputs(settings) == outputs(undisturbed)


def test_a_torn_file_or_record_is_not_taken_for_finished(settings: Settings) -> None:
    kill_in_the_middle(settings, 4)
    before = finished(settings, "bald_images")
    torn = next(iter((settings.processed / "bald_images" / SHARD).glob("*.jpg")))
    torn.write_bytes(torn.read_bytes()[:-100] + bytes(100))
    (record_file,) = next((settings.processed / "hair_patches").glob(".*.journal")).iterdir()
    record_file.write_bytes(record_file.read_bytes()[:-7])
    reports = make_image_parts(SHARD, settings, PROFILE)
    assert torn.stem in before
    assert torn.read_bytes()[-2:] == b"\xff\xd9"
    undisturbed = settings.model_copy(update={"training_root": settings.training_root.with_name("undisturbed")})
    build_catalog(undisturbed, PROFILE)
    for asset, report in make_image_parts(SHARD, undisturbed, PROFILE).items():
        assert reports[asset].data_version == report.data_version
        assert reports[asset].failed == {}


def test_other_settings_take_nothing_from_the_journal(settings: Settings) -> None:
    kill_in_the_middle(settings, 4)
    bald = PROFILE.processing.bald.model_copy(update={"method": "gray"})
    changed = PROFILE.model_copy(update={"processing": PROFILE.processing.model_copy(update={"bald": bald})})
    report = make_image_parts(SHARD, settings, changed, ("bald_images",))["bald_images"]
    assert report.written == len(read_catalog(settings.catalog_path)) == 15
    again = settings.model_copy(update={"training_root": settings.training_root.with_name("again")})
    build_catalog(again, PROFILE)
    assert make_image_parts(SHARD, again, changed, ("bald_images",))["bald_images"].data_version == report.data_version
