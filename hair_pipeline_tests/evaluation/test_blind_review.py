"""Blind review: sides are hidden and mixed, a filled sheet is understood only with its key, the rule decides."""

import csv
import html
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation import ab_test, blind_review
from hair_pipeline.evaluation.ab_test import run_ab_test
from hair_pipeline.evaluation.blind_review import COLUMNS, read_review, write_review
from hair_pipeline.evaluation.ledger import Ledger
from hair_pipeline.profile import AbTestConfig
from hair_pipeline.release.registry import import_review
from hair_pipeline.release.registry_file import Registry
from hair_pipeline_tests.evaluation.tiny_world import World

CONFIG = AbTestConfig()
PHOTOS = [f"photo {number}" for number in range(20)]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """The new model stands left on even photos and right on odd ones."""
    path = tmp_path / "blind_key.json"
    return write_key(path, PHOTOS)


def write_key(path: Path, photos: list[str]) -> Path:
    cases = [{"case": n + 1, "photo": photo, "new_side": new_is(n)} for n, photo in enumerate(photos)]
    path.write_text(json.dumps({"review": "bcdf", "id": "t1", "version": "v1", "cases": cases}))
    return path


def fill(path: Path, answer: Callable[[int], tuple[str, str, str]], delimiter: str = ",") -> Path:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(COLUMNS)
    for number, photo in enumerate(PHOTOS):
        writer.writerow(["bcdf", number + 1, photo, *answer(number), "rim; left" if number == 3 else ""])
    path.write_text(text.getvalue(), encoding="utf-8-sig")
    return path


def new_is(number: int) -> str:
    return ("left", "right")[number % 2]


def old_is(number: int) -> str:
    return ("right", "left")[number % 2]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_clean_preferred_model_is_approved(tmp_path: Path, key: Path, delimiter: str) -> None:
    sheet = fill(tmp_path / "sheet.csv", lambda n: (new_is(n).title(), "no", "NO"), delimiter)
    sheet.write_text(sheet.read_text() + (len(COLUMNS) - 1) * delimiter + "\n")  # a row that was emptied again
    result = read_review(sheet, key, CONFIG)
    assert (result.decision, result.new_better, result.old_better, result.equal) == ("approve", 20, 0, 0)
    assert result.notes == {"photo 3": "rim; left"}


def test_artifacts_on_the_new_models_side_reject_and_on_the_olds_do_not(tmp_path: Path, key: Path) -> None:
    def answer(side: Callable[[int], str]) -> Callable[[int], tuple[str, str, str]]:
        def one(number: int) -> tuple[str, str, str]:
            marks = {"left": "no", "right": "no"} | ({side(number): "yes"} if number == 4 else {})
            return new_is(number), marks["left"], marks["right"]

        return one

    rejected = read_review(fill(tmp_path / "new.csv", answer(new_is)), key, CONFIG)
    assert (rejected.decision, rejected.new_artifacts, rejected.old_artifacts) == ("reject", 1, 0)
    assert "1 of 20" in rejected.reasons[0]
    approved = read_review(fill(tmp_path / "old.csv", answer(old_is)), key, CONFIG)
    assert (approved.decision, approved.old_artifacts) == ("approve", 1)
    tolerant = CONFIG.model_copy(update={"max_artifacts": 0.05})
    assert read_review(tmp_path / "new.csv", key, tolerant).decision == "approve"


@pytest.mark.parametrize(
    ("wins", "decision"),
    [(20, "reject"), (15, "reject"), (12, "inconclusive"), (8, "inconclusive"), (7, "approve"), (0, "approve")],
)
def test_the_old_model_must_surely_not_be_preferred(tmp_path: Path, key: Path, wins: int, decision: str) -> None:
    sheet = fill(tmp_path / "sheet.csv", lambda n: (old_is(n) if n < wins else new_is(n), "no", "no"))
    result = read_review(sheet, key, CONFIG)
    assert result.decision == decision
    assert decision != "inconclusive" or "must be below 60%" in result.reasons[0]


@pytest.mark.parametrize("decided", [0, 19])
def test_too_few_decided_photos_approve_nothing(tmp_path: Path, key: Path, decided: int) -> None:
    sheet = fill(tmp_path / "sheet.csv", lambda n: (new_is(n) if n < decided else "equal", "no", "no"))
    result = read_review(sheet, key, CONFIG)
    assert (result.decision, result.old_better, result.equal) == ("inconclusive", 0, 20 - decided)
    assert f"better on {decided} photos, at least 20" in result.reasons[0]


def test_unfinished_foreign_and_broken_sheets_are_explained(tmp_path: Path, key: Path) -> None:
    unfinished = fill(tmp_path / "a.csv", lambda n: ("left" if n != 6 else "", "no", "no"))
    with pytest.raises(PipelineError, match="case 7: better is ''"):
        read_review(unfinished, key, CONFIG)
    whole = fill(tmp_path / "b.csv", lambda n: ("left", "no", "no"))
    lines = whole.read_text().splitlines()
    (tmp_path / "short.csv").write_text("\n".join(lines[:-1]))
    (tmp_path / "twice.csv").write_text("\n".join([*lines, lines[-1]]))
    for name in ("short.csv", "twice.csv"):
        with pytest.raises(PipelineError, match="photos are not those of the key"):
            read_review(tmp_path / name, key, CONFIG)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(PipelineError, match="has the columns"):
        read_review(tmp_path / "other.csv", key, CONFIG)
    (tmp_path / "long.csv").write_text("\n".join([*lines[:-1], lines[-1] + 200_000 * "n"]))
    with pytest.raises(PipelineError, match="is not a CSV file"):
        read_review(tmp_path / "long.csv", key, CONFIG)
    with pytest.raises(PipelineError, match="cannot be read"):
        read_review(tmp_path / "none.csv", key, CONFIG)
    case = {"case": 1, "photo": "a", "new_side": "up"}
    (tmp_path / "key.json").write_text(json.dumps({"review": "b", "id": "t1", "version": "v1", "cases": [case]}))
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    for name in ("key.json", "a.csv", "image.png"):
        with pytest.raises(PipelineError, match="not the key") as refused:
            read_review(whole, tmp_path / name, CONFIG)
        assert "delete" not in refused.value.message
    with pytest.raises(PipelineError, match=r"none\.json: cannot be read.*\n.*blind_key\.json"):
        read_review(whole, tmp_path / "none.json", CONFIG)


def test_a_sheet_of_another_review_is_refused_though_its_photos_are_the_same(tmp_path: Path, key: Path) -> None:
    sheet = fill(tmp_path / "sheet.csv", lambda n: (new_is(n), "no", "no"))
    key.write_text(key.read_text().replace("bcdf", "ghjk"))
    with pytest.raises(PipelineError, match="review 'bcdf', the key of review 'ghjk'"):
        read_review(sheet, key, CONFIG)


def test_names_that_a_spreadsheet_rewrites_are_understood_and_swapped_ones_are_not(tmp_path: Path) -> None:
    key = write_key(tmp_path / "key.json", ["00001", "123456789012", "Ann", "00004"])
    head = ",".join(COLUMNS)
    rows = [
        "BCDF,2,1.23E+11,right,no,no,",
        "bcdf,1,1,left,no,no,rim",
        "bcdf,3,ann,left,no,no,",
        "bcdf,4.0,4,right,no,no,",
    ]
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("\n".join([head, *rows]))
    result = read_review(sheet, key, CONFIG)
    assert (result.new_better, result.old_better, result.review) == (4, 0, "bcdf")
    assert result.notes == {"00001": "rim"}
    sheet.write_text("\n".join([head, *rows]).replace("1,1,left", "1,4,left"))
    with pytest.raises(PipelineError, match="case 1 is photo '4', in the key '00001'"):
        read_review(sheet, key, CONFIG)


def test_names_that_begin_like_formulas_are_text_in_the_sheet(tmp_path: Path) -> None:
    names = ["=1+1", "+49", "-5", "@sum", "anna"]
    ledger = Ledger(tmp_path / "ledger", ["old", "new"])
    write_review(tmp_path, "t1", "v1", [(name, f"{name}|{name}") for name in names], ledger)
    sheet, key = tmp_path / "blind" / "sheet.csv", tmp_path / "blind_key.json"
    rows = list(csv.reader(io.StringIO(sheet.read_text("utf-8-sig"))))
    assert [row[2] for row in rows[1:]] == ["'=1+1", "'+49", "'-5", "'@sum", "anna"]
    page = html.unescape((tmp_path / "blind" / "review.html").read_text())
    assert all(f'data-photo="{row[2]}"' in page for row in rows[1:])
    for written in (names, [row[2] for row in rows[1:]]):  # spreadsheets drop the apostrophe or keep it
        filled = [[*row[:2], name, "equal", "no", "no", ""] for row, name in zip(rows[1:], written, strict=True)]
        with (tmp_path / "filled.csv").open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *filled])
        assert read_review(tmp_path / "filled.csv", key, CONFIG).equal == 5


def test_another_test_in_the_folder_sets_the_old_key_aside(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger", ["old", "new"])
    key = tmp_path / "blind_key.json"
    for test in ("t1", "t1", "t2"):
        before = key.read_text() if key.exists() else ""
        write_review(tmp_path, test, "v1", [("anna", "anna|anna")], ledger)
    review = json.loads(before)["review"]
    assert json.loads(key.read_text())["id"] == "t2"
    assert (tmp_path / f"blind_key.{review}.json").read_text() == before
    assert len(list(tmp_path.glob("blind_key*.json"))) == 2


def test_a_review_that_was_given_away_keeps_its_sides_whatever_is_run_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is moved to the reviewer; later the test is killed, after the review and before the verdict."""
    arguments = (world.inputs.customers, "untrained", "current", tmp_path / "ab", world.settings, world.profile)
    out = run_ab_test(*arguments).folder
    key = (out / "blind_key.json").read_text()
    page = (out / "blind" / "review.html").read_text()
    assert json.loads(key)["review"] in page
    shutil.rmtree(out / "blind")
    stamp = (out / "verdict.json").stat().st_mtime_ns
    run_ab_test(*arguments)
    assert (out / "verdict.json").stat().st_mtime_ns == stamp
    (out / "verdict.json").unlink()
    monkeypatch.setattr("secrets.choice", lambda _: pytest.fail("sides are drawn again"))
    run_ab_test(*arguments)
    assert (out / "blind_key.json").read_text() == key
    assert (out / "blind" / "review.html").read_text() == page


def test_the_photos_shown_are_drawn_by_seed_not_by_name(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ab_test, "SHOWN_PHOTOS", 2)
    run_ab_test(world.inputs.customers, "untrained", "current", tmp_path, world.settings, world.profile)
    names = sorted(path.stem for path in world.inputs.customers.glob("*.jpg"))
    keys = [f"{name}|{name}" for name in names]
    shown = ab_test._shown(keys, world.profile.ab_test.seed)
    cases = json.loads((tmp_path / "blind_key.json").read_text())["cases"]
    assert {f"{case['photo']}|{case['photo']}" for case in cases} == shown
    assert len(shown) == 2
    assert len({frozenset(ab_test._shown(keys, seed)) for seed in range(10)}) > 3


def test_the_test_hides_the_sides_and_its_sheet_becomes_a_sign_off(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blind_review, "MIN_DECIDED", 6)
    out = tmp_path / "ab"
    result = run_ab_test(world.inputs.customers, "untrained", "current", out, world.settings, world.profile)
    key = json.loads((out / "blind_key.json").read_text())
    sides = [case["new_side"] for case in key["cases"]]
    assert set(sides) <= {"left", "right"}
    assert {path.name for path in (out / "blind").iterdir()} == {"review.html", "sheet.csv"}
    page = (out / "blind" / "review.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:|//|file:)", page)
    for secret in (result.version, "untrained", "new_side", "Stage 2"):
        assert secret not in page
    assert page.count("data:image/jpeg;base64,") == 3 * len(sides)

    version = tmp_path / "registry_root" / "checkpoints" / result.version
    version.mkdir(parents=True)
    registry = Registry(tmp_path / "registry_root" / "registry" / "registry.json")
    rows = list(csv.reader(io.StringIO((out / "blind" / "sheet.csv").read_text("utf-8-sig"))))
    filled = [rows[0]] + [[*row[:3], side, "no", "no", ""] for row, side in zip(rows[1:], sides, strict=True)]
    (tmp_path / "filled.csv").write_text("\n".join(",".join(row) for row in filled))
    arguments = (result.version, tmp_path / "filled.csv", out / "blind_key.json", "Kim", CONFIG)
    with pytest.raises(PipelineError, match="no version"):
        import_review(registry, *arguments)
    registry.register(result.version, version, {}, {"verdict": "approve", "id": "another"})
    with pytest.raises(PipelineError, match="registered with another"):
        import_review(registry, *arguments)
    registry.register(result.version, version, {}, {"verdict": "approve", "id": result.id, "against_first": True})
    assert import_review(registry, *arguments).decision == "approve"
    (entry,) = registry.show(result.version)["sign_offs"]
    assert (entry["reviewer"], entry["decision"]) == ("Kim", "approve")
    assert entry["blind_review"]["new_better"] == len(sides)
    assert registry.obstacles(result.version) == []
