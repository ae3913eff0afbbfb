"""Reports that are killed and started again: nothing is drawn twice, nothing is held longer than needed."""

import fcntl
import gc
import json
import shutil
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hair_pipeline import files
from hair_pipeline.evaluation import ab_test, report
from hair_pipeline.evaluation.ab_test import run_ab_test
from hair_pipeline.evaluation.cases import Case
from hair_pipeline.evaluation.contenders import ModelContender
from hair_pipeline.evaluation.ledger import Ledger
from hair_pipeline.evaluation.measure import Measurements
from hair_pipeline.evaluation.report import evaluate
from hair_pipeline_tests.evaluation.tiny_world import World


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the cases that models draw, in order."""
    keys: list[str] = []
    draw = ModelContender.draw

    def noted(self: ModelContender, cases: list[Case]) -> Any:
        keys.extend(f"{self.label} {case.key}" for case in cases)
        return draw(self, cases)

    monkeypatch.setattr(ModelContender, "draw", noted)
    return keys


class Killed(Exception):
    pass


def kill_after(batches: int, module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the function raise at its call number `batches` + 1."""
    work, calls = getattr(module, name), []

    def limited(*arguments: Any, **options: Any) -> Any:
        if len(calls) == batches:
            raise Killed
        calls.append(1)
        return work(*arguments, **options)

    monkeypatch.setattr(module, name, limited)


def test_a_killed_evaluation_goes_on_and_ends_the_same(
    world: World, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, profile = world.settings, world.profile
    whole = evaluate(settings, profile)
    table = pd.read_parquet(whole.folder / "per_image.parquet")
    shutil.rmtree(whole.folder)
    drawn.clear()
    with monkeypatch.context() as patch:
        kill_after(2, report._Run, "_batch", patch)
        with pytest.raises(Killed):
            evaluate(settings, profile)
    first, half = list(drawn), len(drawn)
    again = evaluate(settings, profile)
    assert 0 < half < len(drawn)
    own = [key for key in drawn[half:] if key in first]
    assert not own
    assert again.data_version == whole.data_version
    pd.testing.assert_frame_equal(pd.read_parquet(again.folder / "per_image.parquet"), table)
    assert not list(settings.reports.glob("eval/.*.unfinished"))


def test_a_killed_ab_test_goes_on_with_the_customers_that_are_left(
    world: World, tmp_path: Path, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (world.inputs.customers, "untrained", "current")
    whole = run_ab_test(*arguments, tmp_path / "whole", world.settings, world.profile)
    drawn.clear()
    with monkeypatch.context() as patch:
        kill_after(1, ab_test, "_run_batch", patch)
        with pytest.raises(Killed):
            run_ab_test(*arguments, tmp_path / "killed", world.settings, world.profile)
    half = len(drawn)
    assert half == 2 * world.profile.evaluation.batch_size
    again = run_ab_test(*arguments, tmp_path / "killed", world.settings, world.profile)
    assert len(set(drawn)) == len(drawn)
    assert again.data_version == whole.data_version
    assert not list((tmp_path / "killed").glob(".*.unfinished"))


def test_an_ab_test_waits_for_another_in_its_folder_and_looks_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "out" / ab_test.LOCK
    runs = count_while_locked(ab_test, "_run", lock, monkeypatch)
    arguments = (world.inputs.customers, "untrained", "current", tmp_path / "out", world.settings, world.profile)
    finish_while_waiting(lambda: run_ab_test(*arguments), monkeypatch)
    verdict = run_ab_test(*arguments)
    assert len(runs) == 1
    assert json.loads((tmp_path / "out" / "verdict.json").read_text())["id"] == verdict.id


def test_an_evaluation_waits_for_another_of_its_model_and_looks_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = evaluate(world.settings, world.profile).folder
    shutil.rmtree(folder)
    runs = count_while_locked(report, "_make", folder.with_name(f".{folder.name}.lock"), monkeypatch)
    finish_while_waiting(lambda: evaluate(world.settings, world.profile), monkeypatch)
    assert evaluate(world.settings, world.profile).folder == folder
    assert len(runs) == 1


def count_while_locked(module: Any, name: str, lock: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with each call of the function, which must find the lock taken."""
    work, calls = getattr(module, name), []

    def counted(*arguments: Any) -> Any:
        with lock.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        calls.append(1)
        return work(*arguments)

    monkeypatch.setattr(module, name, counted)
    return calls


def finish_while_waiting(other: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first who asks for a lock wait until `other` has had it."""
    take = files.one_at_a_time

    def late(path: Path) -> AbstractContextManager[None]:
        monkeypatch.setattr(files, "one_at_a_time", take)
        other()
        return take(path)

    monkeypatch.setattr(files, "one_at_a_time", late)


def test_many_customers_are_never_held_together(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 customers: at no time more cases than two batches (the one drawn, the one being read) are alive."""
    folder = tmp_path / "customers"
    shutil.copytree(world.inputs.customers, folder)
    originals = sorted(folder.glob("*.jpg"))
    for number in range(40 - len(originals)):
        source = originals[number % len(originals)]
        (folder / f"more_{number:03d}.jpg").write_bytes(source.read_bytes() + f"{number:03d}".encode())  # no copy
        shutil.copytree(folder / source.stem, folder / f"more_{number:03d}")
    alive: weakref.WeakSet[Case] = weakref.WeakSet()
    most = 0
    build = Case.__init__

    def counted(self: Case, *arguments: Any, **options: Any) -> None:
        nonlocal most
        build(self, *arguments, **options)
        alive.add(self)
        most = max(most, len(alive))

    monkeypatch.setattr(Case, "__init__", counted)
    monkeypatch.setattr(Case, "__hash__", lambda self: id(self))
    monkeypatch.setattr(Case, "__eq__", lambda self, other: self is other)
    gc.collect()
    run_ab_test(folder, "untrained", "current", tmp_path / "out", world.settings, world.profile)
    data = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert data["images"] == 40
    assert most <= 2 * world.profile.evaluation.batch_size


def test_a_damaged_batch_is_drawn_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger", ["model"])
    features = {"ring_real": np.ones((1, 3)), "ring_people": np.array(["kim"])}
    for key in ("a", "b"):
        ledger.add([key], {"model": Measurements([{"case": key, "halo": float("nan")}], features)}, {"x": "why"})
    assert Ledger(tmp_path / "ledger", ["model"]).done == {"a", "b"}
    path = sorted((tmp_path / "ledger").glob("*.npz"))[1]
    path.write_bytes(path.read_bytes()[:100])
    back = Ledger(tmp_path / "ledger", ["model"])
    assert back.done == {"a"}
    assert back.left_out == {"x": "why"}
    back.add(["b"], {"model": Measurements([{"case": "b", "halo": 1.0}], features)}, {})
    measured = Ledger(tmp_path / "ledger", ["model"]).measurements("model")
    assert [row["case"] for row in measured.rows] == ["a", "b"]
    assert measured.features["ring_real"].shape == (2, 3)
    assert measured.features["ring_people"].tolist() == ["kim", "kim"]


def test_only_wanted_pictures_are_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger", ["model"])
    for key in ("a", "b"):
        ledger.keep(key, {"photo": np.zeros((8, 8, 3), np.uint8)})
    ledger = Ledger(tmp_path / "ledger", ["model"])
    ledger.drop_all_but(["b"])
    assert ledger.data_uri("a", "photo") is None
    assert str(ledger.data_uri("b", "photo")).startswith("data:image/jpeg;base64,")
    ledger.close()
    assert not (tmp_path / "ledger").exists()
