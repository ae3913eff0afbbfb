"""People's blind comparison of two models: a page to fill in, a sheet, a key kept apart, and what a filled sheet says.

Belongs here: which model stands left and which right, the page's data, reading a filled sheet with its key. Does not
belong here: recording the decision (`release.registry`).

`blind/` is what a reviewer gets: `review.html` (works without a network and saves `sheet_filled.csv`) and `sheet.csv`
for those who prefer a table. `blind_key.json`, beside the folder, says which side is the new model; it stays with the
operator. Sides are drawn for every photo from the system's randomness: nothing a reviewer has gives them away. They are
drawn once: a test that is run again keeps its key while it shows the same photos, and another test in the same folder
sets the old key aside as `blind_key.<review>.json`. A random review id stands in the key,
the page and the sheet, so that a sheet is never read with another key; rows are found by their case number, since
spreadsheets rewrite names such as 00001.

A filled sheet rejects when
    artifacts are seen on more than `ab_test.max_artifacts` of the new model's pictures (by default on any), or
    the old model is preferred significantly more often (one-sided sign test at 5%, "equal" left out);
approves when
    at least `MIN_DECIDED` photos are decided, that is not "equal", and
    the upper 95% bound (one-sided, Clopper-Pearson) of the share on which the old model is preferred is below
    `PREFERENCE_MARGIN`: the new model is not inferior by more than that;
and is inconclusive otherwise. Too few photos to tell are no approval.
"""

from __future__ import annotations

import csv
import io
import json
import math
import secrets
import unicodedata
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scipy import stats  # type: ignore[import-untyped]

from hair_pipeline import files
from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.html import write_page
from hair_pipeline.evaluation.ledger import Ledger
from hair_pipeline.profile import AbTestConfig

REVIEW_FOLDER, KEY_FILE, SHEET_FILE = "blind", "blind_key.json", "sheet.csv"
COLUMNS = ("review", "case", "photo", "better", "artifacts_left", "artifacts_right", "notes")
BETTER = ("left", "right", "equal")
YES_NO = ("yes", "no")
SIGNIFICANCE = 0.05
MIN_DECIDED = 20
"""Photos on which one model is better; with fewer a review approves nothing."""
PREFERENCE_MARGIN = 0.60
"""The old model's share of the decided photos must surely be below this."""
FORMULA = ("=", "+", "-", "@")
MAX_SHEET_BYTES = 4_000_000
REVIEW_LETTERS = "bcdfghjkmnpqrtvwxz"
"""Of review ids: no digits and no words, which a spreadsheet would rewrite."""
SAME_NUMBER = 0.005
"""Relative difference up to which a photo's name is a rounded number: spreadsheets show 123456789012 as 1.23E+11."""


@dataclass(frozen=True)
class BlindResult:
    """What a filled sheet says once the key is known.

    Attributes:
        decision: approve, reject or inconclusive. reasons: why, in words.
        photos: judged. new_better, old_better, equal: counts. new_artifacts, old_artifacts: photos with artifacts.
        p_old_better: of the one-sided sign test that the old model is preferred. old_share_high: upper 95% bound of its
            share of the decided photos.
        review: id of the review. test: id of the A/B test. version: the new model's.
        notes: the reviewer's notes by photo, those that are not empty.
    """

    decision: str
    reasons: list[str]
    photos: int
    new_better: int
    old_better: int
    equal: int
    new_artifacts: int
    old_artifacts: int
    p_old_better: float
    old_share_high: float
    review: str
    test: str
    version: str
    notes: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Key:
    """What blind_key.json holds.

    Attributes:
        review: id of the review. test, version: of the A/B test and its new model.
        photos: image id of every case, the first of which has number 1. new_side: left or right, case by case.
    """

    review: str
    test: str
    version: str
    photos: list[str]
    new_side: list[str]

    def write(self, path: Path) -> None:
        cases = enumerate(zip(self.photos, self.new_side, strict=True), 1)
        content = {
            "review": self.review,
            "id": self.test,
            "version": self.version,
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "cases": [{"case": number, "photo": photo, "new_side": side} for number, (photo, side) in cases],
        }
        files.write_json(path, content)


def write_review(folder: Path, identifier: str, version: str, photos: list[tuple[str, str]], ledger: Ledger) -> None:
    """Write the review folder and, before it, the key beside it; a key of the same test and photos is kept.

    Args:
        folder: of the A/B test. identifier, version: of the test and its new model.
        photos: (image id, case key) of the photos shown, whose pictures `ledger` holds as photo, old and new.
    """
    key = _kept_or_new_key(folder / KEY_FILE, identifier, version, [image_id for image_id, _ in photos])
    cases = []
    for number, ((image_id, case_key), side) in enumerate(zip(photos, key.new_side, strict=True), 1):
        left, right = (ledger.data_uri(case_key, model) for model in _in_order(side))
        original = ledger.data_uri(case_key, "photo")
        pictures = {"original": original, "left": left, "right": right}
        cases.append({"number": number, "photo": image_id, "sheet_name": _as_text(image_id)} | pictures)
    page = folder / REVIEW_FOLDER / "review.html"
    write_page("blind.html.j2", page, id=identifier, review=key.review, cases=cases, columns=COLUMNS)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows([key.review, case["number"], case["sheet_name"], "", "", "", ""] for case in cases)
    files.write_bytes(folder / REVIEW_FOLDER / SHEET_FILE, text.getvalue().encode("utf-8-sig"))


def _as_text(name: str) -> str:
    """The name as a spreadsheet takes it for text: one that begins like a formula gets an apostrophe in front."""
    return f"'{name}" if name.startswith(FORMULA) else name


def _in_order(new_side: str) -> tuple[str, str]:
    """The models from left to right."""
    return ("new", "old") if new_side == "left" else ("old", "new")


def _kept_or_new_key(path: Path, identifier: str, version: str, photos: list[str]) -> _Key:
    """The key in the folder if it is of this test and these photos: a reviewer may have its page. Else a new one, and
    the other is set aside."""
    if path.exists():
        try:
            kept = _read_key(path)
        except PipelineError:
            kept = None
        if kept is not None and (kept.test, kept.version, kept.photos) == (identifier, version, photos):
            return kept
        if kept is not None:  # its sheet may still be out
            path.replace(path.with_name(f"{path.stem}.{kept.review}{path.suffix}"))
    review = "".join(secrets.choice(REVIEW_LETTERS) for _ in range(8))
    key = _Key(review, identifier, version, photos, [secrets.choice(("left", "right")) for _ in photos])
    key.write(path)
    return key


def read_review(sheet: Path, key: Path, config: AbTestConfig) -> BlindResult:
    """What a filled sheet says.

    Args:
        sheet: a filled `sheet.csv` or the file that the page saves. key: the test's `blind_key.json`.

    Raises:
        PipelineError: a file cannot be read, does not belong to the other, or a photo is not judged.
    """
    known = _read_key(key)
    rows = _match(_read_sheet(sheet), known, sheet, key)
    sides = known.new_side
    new_better = sum(row["better"] == side for row, side in zip(rows, sides, strict=True))
    equal = sum(row["better"] == "equal" for row in rows)
    old_better = len(rows) - new_better - equal
    new_artifacts = sum(row[f"artifacts_{side}"] == "yes" for row, side in zip(rows, sides, strict=True))
    old_artifacts = sum(row[f"artifacts_{_other(side)}"] == "yes" for row, side in zip(rows, sides, strict=True))
    decided = new_better + old_better
    p_value, high = _preference(old_better, decided)
    rejected, unsure = [], []
    if new_artifacts > config.max_artifacts * len(rows):
        rejected.append(f"artifacts on {new_artifacts} of {len(rows)} pictures of the new model")
    if p_value < SIGNIFICANCE:
        rejected.append(f"the old model is preferred {old_better} to {new_better} (p = {p_value:.3f})")
    if decided < MIN_DECIDED:
        unsure.append(f"one model is better on {decided} photos, at least {MIN_DECIDED} are needed")
    if high >= PREFERENCE_MARGIN:
        unsure.append(
            f"the old model may be preferred on {high:.0%} of the decided photos ({old_better} of {decided}, upper 95% "
            f"bound), must be below {PREFERENCE_MARGIN:.0%}"
        )
    counted = (
        f"the new model is better on {new_better} photos, the old one on {old_better}, {equal} are equal; "
        f"artifacts on {new_artifacts} pictures of the new model"
    )
    decision = "reject" if rejected else "inconclusive" if unsure else "approve"
    reasons = rejected or unsure or [counted]
    notes = {photo: row["notes"] for row, photo in zip(rows, known.photos, strict=True) if row["notes"]}
    return BlindResult(
        decision, reasons, len(rows), new_better, old_better, equal, new_artifacts, old_artifacts, p_value,
        high, known.review, known.test, known.version, notes,
    )  # fmt: skip


def _preference(old_better: int, decided: int) -> tuple[float, float]:
    """Of the photos that are not equal: p that the old model is no more preferred; upper 95% bound of its share."""
    if not decided:
        return 1.0, 1.0
    more = stats.binomtest(old_better, decided, alternative="greater")
    less = stats.binomtest(old_better, decided, alternative="less")
    return float(more.pvalue), float(less.proportion_ci(1 - SIGNIFICANCE).high)


def _other(side: str) -> str:
    return "right" if side == "left" else "left"


def _read_key(path: Path) -> _Key:
    remedy = (
        f"give the {KEY_FILE} that the A/B test wrote beside its folder {REVIEW_FOLDER}; keep it: it is the only copy"
    )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        cases = data["cases"]
        photos, sides = [str(case["photo"]) for case in cases], [str(case["new_side"]) for case in cases]
        numbers = [case["case"] for case in cases]
        if not cases or set(sides) - {"left", "right"} or numbers != list(range(1, len(cases) + 1)):
            raise ValueError("cases")
        return _Key(str(data["review"]), str(data["id"]), str(data["version"]), photos, sides)
    except OSError as error:
        raise PipelineError(f"cannot be read ({error.strerror})", file=path, remedy=remedy) from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PipelineError("is not the key of a blind review", file=path, remedy=remedy) from error


def _match(rows: list[dict[str, str]], known: _Key, sheet: Path, key: Path) -> list[dict[str, str]]:
    """The sheet's rows in the key's order, found by review id and case number.

    Raises:
        PipelineError: they are of another review, or are not the key's cases.
    """
    for review in sorted({row["review"].lower() for row in rows} - {known.review}):
        raise PipelineError(
            f"the sheet is of review {review!r}, the key of review {known.review!r}: sides would be mixed up",
            file=sheet,
            remedy=f"give the {KEY_FILE} that was written with the sheet ({key} belongs to test {known.test})",
        )
    found = {_number(row["case"]): row for row in rows}
    if set(found) != set(range(1, len(known.photos) + 1)) or len(rows) != len(known.photos):
        raise PipelineError(
            "the sheet's photos are not those of the key",
            file=sheet,
            remedy=f"every case of the review once, 1 to {len(known.photos)}, numbered as in the sheet given out",
        )
    for case, photo in enumerate(known.photos, 1):
        if not _same_name(found[case]["photo"], photo):
            raise PipelineError(
                f"case {case} is photo {found[case]['photo']!r}, in the key {photo!r}",
                file=sheet,
                remedy="keep the rows whole when sorting; where a spreadsheet rewrote the name, write it as in the key",
            )
    return [found[case] for case in range(1, len(known.photos) + 1)]


def _number(text: str) -> float:
    """A number as a spreadsheet writes it; NaN for other text."""
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return math.nan


def _same_name(written: str, name: str) -> bool:
    """Is it the name, or what a spreadsheet makes of it: 1 of 00001, 1.23E+11 of 123456789012?"""
    written = written.removeprefix("'") if name.startswith(FORMULA) else written
    if unicodedata.normalize("NFC", written).casefold() == unicodedata.normalize("NFC", name).strip().casefold():
        return True
    return math.isclose(_number(written), _number(name), rel_tol=SAME_NUMBER)


def _read_sheet(path: Path) -> list[dict[str, str]]:
    """The sheet's rows with answers in lower case; a spreadsheet's semicolons, tabs and empty rows are understood too.

    Raises:
        PipelineError: not such a sheet, or an answer is missing or not allowed; the message names the row.
    """
    try:
        if path.stat().st_size > MAX_SHEET_BYTES:
            raise PipelineError("is too large for a review sheet", file=path, remedy="give the filled sheet.csv")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PipelineError(f"cannot be read ({error.strerror})", file=path, remedy="check the path") from error
    except UnicodeDecodeError as error:
        raise PipelineError("is not UTF-8 text", file=path, remedy="save the sheet as CSV in UTF-8") from error
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    if set(reader.fieldnames or ()) != set(COLUMNS):
        raise PipelineError(
            f"has the columns {reader.fieldnames}, not {list(COLUMNS)}",
            file=path,
            remedy="fill in the sheet.csv as it is",
        )
    try:
        filled = list(reader)
    except csv.Error as error:
        raise PipelineError(
            f"is not a CSV file ({error})",
            file=path,
            remedy="save the sheet as CSV again; notes may have 131,072 letters",
        ) from error
    rows: list[dict[str, str]] = []
    for row in filled:
        answers = {name: (row[name] or "").strip() for name in COLUMNS}
        if not any(answers.values()):  # spreadsheets save rows that were written in and emptied again
            continue
        for name, allowed in (("better", BETTER), ("artifacts_left", YES_NO), ("artifacts_right", YES_NO)):
            answers[name] = answers[name].lower()
            if answers[name] not in allowed:
                raise PipelineError(
                    f"case {answers['case'] or len(rows) + 1}: {name} is {answers[name]!r}, not {', '.join(allowed)}",
                    file=path,
                    remedy="judge every photo",
                )
        rows.append(answers)
    return rows
