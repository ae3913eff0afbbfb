"""Exactness: a run killed over and over ends with the bits of the run that was left alone, for every trainer."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import pytest

from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training import checkpoint
from hair_pipeline_tests.training import children
from hair_pipeline_tests.training.tiny_tasks import assert_same, everything
from hair_pipeline_tests.training.tiny_training import Trained, tiny_profile

KILLS = 5
FILES = 5
"""Files of a checkpoint, two events each."""


def killable_profile() -> Profile:
    """Other values than those of the fixture's runs, so that there is something to train."""
    values = tiny_profile().model_dump()
    values["patch_encoder"] |= {"steps": 5, "seed": 1}
    values["classifier"] |= {"steps": 4, "seed": 1}
    for stage in ("stage1", "stage2"):
        values[stage] |= {"max_steps": 5, "batch_size": 2, "seed": 1, "validate_every": 5}
    return Profile.model_validate(values)


@pytest.fixture(scope="module")
def settings(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The fixture's processed data and base networks, in a training root of their own."""
    root = tmp_path_factory.mktemp("killed") / "training"
    shutil.copytree(trained.settings.training_root, root)
    return trained.settings.model_copy(update={"training_root": root})


@pytest.mark.slow
@pytest.mark.timeout(900)  # about 15 s each on two free cores; many processes, so slow on a loaded machine
@pytest.mark.parametrize("name", ["patch-encoder", "style-classifier", "stage1", "stage2"])
def test_killed_runs_end_bit_by_bit_like_one_left_alone(name: str, settings: Settings, tmp_path: Path) -> None:
    chance = random.Random(name)
    folder = settings.runs / name
    before = set(folder.iterdir())
    current = (folder / "current.json").read_bytes()
    journal = tmp_path / "events"

    def attempt(deadly_event: int | None) -> tuple[bool, list[str]]:
        journal.write_text("")
        child = children.start(children.train_and_die, name, settings, killable_profile(), deadly_event, journal)
        child.join(600)
        assert child.exitcode in (0, -signal.SIGKILL), journal.with_suffix(".error").read_text()
        return child.exitcode == 0, journal.read_text().split()

    finished, _ = attempt(None)
    assert finished
    (run_dir,) = {path for path in folder.iterdir() if path.is_dir()} - before
    shutil.move(run_dir, tmp_path / "whole")

    deaths: list[str] = []
    truncated = 0
    finished = False
    while not finished:
        wanted = _wanted(deaths, chance)
        finished, events = attempt(wanted)
        if finished:
            break
        deaths.append(events[-1])
        assert len(deaths) < 30, "no progress"
        for checkpoints in run_dir.glob("*/checkpoints"):
            saved = sorted(checkpoints.glob("step_*"))
            if len(saved) > 1 and not truncated:
                newest = saved[-1] / chance.choice(["weights.safetensors", "optimizer.safetensors", "state.json"])
                newest.write_bytes(newest.read_bytes()[:50])
                truncated += 1
    assert len(deaths) >= KILLS
    assert "micro" in deaths, "no kill came in the middle of a window"
    assert "file" in deaths or "written" in deaths, "no kill came while a checkpoint was being written"
    assert truncated
    networks = [path.parent.name for path in (tmp_path / "whole").glob("*/losses.jsonl")]
    assert len(networks) == (2 if name == "style-classifier" else 1)
    for network in networks:
        whole, killed = tmp_path / "whole" / network, run_dir / network
        assert_same(everything(whole), everything(killed))
        assert (whole / "losses.jsonl").read_text() == (killed / "losses.jsonl").read_text()
        assert checkpoint.load_newest(killed / "checkpoints") is not None
    (folder / "current.json").write_bytes(current)


def _wanted(deaths: list[str], chance: random.Random) -> int | None:
    """At which event the next attempt dies: first in a window, then in the first save, then anywhere."""
    window, save = 4, 2 * FILES  # two steps of two micro-batches, then a checkpoint
    if len(deaths) == 0:
        return chance.choice([1, 3])  # after one micro-batch of two
    if len(deaths) == 1:
        return window + chance.randint(1, save)
    if len(deaths) == 2:
        return window + save + window + save + chance.randint(1, 2)  # two checkpoints are there
    return window + save + chance.randint(-save, 3) if len(deaths) < KILLS else None
