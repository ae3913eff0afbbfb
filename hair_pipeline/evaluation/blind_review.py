"""People's blind comparison of two models: a page to fill in, a sheet, a key kept apart, and what a filled sheet says.

Belongs here: which model stands left and which right, the page's data, reading a filled sheet with its key. Does not
belong here: recording the decision (`release.registry`).

`blind/` is what a reviewer gets: `review.html` (works without a network and saves `sheet_filled.csv`) and `sheet.csv`
for those who prefer a table. `blind_key.json`, beside the folder, says which side is the new model; it stays with the
operator. Sides are drawn anew for every photo from the system's randomness: nothing a reviewer has gives them away.

A filled sheet approves when
    artifacts on the new model's pictures are at most `ab_test.max_artifacts` of the photos (by default none), and
    the old model is not preferred significantly more often (one-sided sign test at 5%, "equal" left out);
otherwise it rejects.
"""

from __future__ import annotations

import csv
import io
import json
import secrets
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
COLUMNS = ("case", "photo", "better", "artifacts_left", "artifacts_right", "notes")
BETTER = ("left", "right", "equal")
YES_NO = ("yes", "no")
SIGNIFICANCE = 0.05
MAX_SHEET_BYTES = 4_000_000


@dataclass(frozen=True)
class BlindResult:
    """What a filled sheet says once the key is known.

    Attributes:
        decision: approve or reject. reasons: why, in words.
        photos: judged. new_better, old_better, equal: counts. new_artifacts, old_artifacts: photos with artifacts.
        p_old_better: of the one-sided sign test that the old model is preferred.
        test: id of the A/B test. version: the new model's.
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
    test: str
    version: str
    notes: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def write_review(folder: Path, identifier: str, version: str, photos: list[tuple[str, str]], ledger: Ledger) -> None:
    """Write the review folder and, beside it, the key.

    Args:
        folder: of the A/B test. identifier, version: of the test and its new model.
        photos: (image id, case key) of the photos shown, whose pictures `ledger` holds as photo, old and new.
    """
    new_side = {image_id: secrets.choice(("left", "right")) for image_id, _ in photos}
    cases = []
    for number, (image_id, key) in enumerate(photos, 1):
        sides = ("new", "old") if new_side[image_id] == "left" else ("old", "new")
        left, right = (ledger.data_uri(key, model) for model in sides)
        cases.append(
            {
                "number": number,
                "photo": image_id,
                "original": ledger.data_uri(key, "photo"),
                "left": left,
                "right": right,
            }
        )
    write_page("blind.html.j2", folder / REVIEW_FOLDER / "review.html", id=identifier, cases=cases, columns=COLUMNS)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows([case["number"], case["photo"], "", "", "", ""] for case in cases)
    files.write_bytes(folder / REVIEW_FOLDER / SHEET_FILE, text.getvalue().encode("utf-8-sig"))
    key_content = {
        "id": identifier,
        "version": version,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "new_side": new_side,
    }
    files.write_json(folder / KEY_FILE, key_content)


def read_review(sheet: Path, key: Path, config: AbTestConfig) -> BlindResult:
    """What a filled sheet says.

    Args:
        sheet: a filled `sheet.csv` or the file that the page saves. key: the test's `blind_key.json`.

    Raises:
        PipelineError: a file cannot be read, does not belong to the other, or a photo is not judged.
    """
    test, version, new_side = _read_key(key)
    rows = _read_sheet(sheet)
    if {row["photo"] for row in rows} != set(new_side) or len(rows) != len(new_side):
        raise PipelineError(
            "the sheet's photos are not those of the key",
            file=sheet,
            remedy=f"give the key of the same A/B test ({key} belongs to test {test})",
        )
    new_better = sum(row["better"] == new_side[row["photo"]] for row in rows)
    equal = sum(row["better"] == "equal" for row in rows)
    old_better = len(rows) - new_better - equal
    new_artifacts = sum(row[f"artifacts_{new_side[row['photo']]}"] == "yes" for row in rows)
    old_artifacts = sum(row[f"artifacts_{_other(new_side[row['photo']])}"] == "yes" for row in rows)
    decided = new_better + old_better
    p_value = float(stats.binomtest(old_better, decided, alternative="greater").pvalue) if decided else 1.0
    reasons = []
    if new_artifacts > config.max_artifacts * len(rows):
        reasons.append(f"artifacts on {new_artifacts} of {len(rows)} pictures of the new model")
    if p_value < SIGNIFICANCE:
        reasons.append(f"the old model is preferred {old_better} to {new_better} (p = {p_value:.3f})")
    decision = "reject" if reasons else "approve"
    if not reasons:
        reasons = [
            f"the new model is better on {new_better} photos, the old one on {old_better}, {equal} are equal; "
            f"artifacts on {new_artifacts} pictures of the new model"
        ]
    notes = {row["photo"]: row["notes"] for row in rows if row["notes"]}
    return BlindResult(
        decision, reasons, len(rows), new_better, old_better, equal, new_artifacts, old_artifacts, p_value, test,
        version, notes,
    )  # fmt: skip


def _other(side: str) -> str:
    return "right" if side == "left" else "left"


def _read_key(path: Path) -> tuple[str, str, dict[str, str]]:
    remedy = (
        f"give the {KEY_FILE} that the A/B test wrote beside its folder {REVIEW_FOLDER}; keep it: it is the only copy"
    )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        sides = {str(photo): str(side) for photo, side in data["new_side"].items()}
        if not sides or set(sides.values()) - {"left", "right"}:
            raise ValueError("sides")
        return str(data["id"]), str(data["version"]), sides
    except OSError as error:
        raise PipelineError(f"cannot be read ({error.strerror})", file=path, remedy=remedy) from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PipelineError("is not the key of a blind review", file=path, remedy=remedy) from error


def _read_sheet(path: Path) -> list[dict[str, str]]:
    """The sheet's rows with answers in lower case; a spreadsheet's semicolons are understood too.

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
    delimiter = ";" if text.partition("\n")[0].count(";") > text.partition("\n")[0].count(",") else ","
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    if set(reader.fieldnames or ()) != set(COLUMNS):
        raise PipelineError(
            f"has the columns {reader.fieldnames}, not {list(COLUMNS)}",
            file=path,
            remedy="fill in the sheet.csv as it is",
        )
    rows: list[dict[str, str]] = []
    for row in reader:
        answers = {name: (row[name] or "").strip() for name in COLUMNS}
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
