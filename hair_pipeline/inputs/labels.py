"""K-Hairstyle's label: one flat JSON object per image, read leniently into a typed `Label` with English attributes.

Belongs here: text repair, missing values, attribute translation. Does not belong here: polygons' forms (`polygons`),
the Korean words themselves (`vocabulary`), and finding the image (`k_hairstyle`).
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

import numpy as np

from hair_pipeline.inputs.polygons import BadPolygon, Polygon, parse_polygon
from hair_pipeline.inputs.reasons import Reason
from hair_pipeline.vocabulary import ATTRIBUTES, BASE_STYLE, CURL_CLASS, HAS_BANGS

MAX_LABEL_BYTES = 16_000_000
_Parsed = TypeVar("_Parsed")


class BadLabel(Exception):
    """The file is not a usable label.

    Attributes:
        reason: one of `Reason`.
        detail: what was found.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


@dataclass(frozen=True)
class Label:
    """What the pipeline keeps of a label.

    Attributes:
        filename: exact base name of the image (NFC); None when the label does not say.
        source: the person; None when the label does not say.
        width, height: size the polygons refer to, pixels.
        front: camera in front of the person.
        horizontal: camera azimuth, degrees.
        age: years.
        rgb: hair colour, three floats.
        attributes: the English columns of `vocabulary.ATTRIBUTES`; None when missing or unknown.
        hair: rings of polygon1. blurred: rings of polygon2, the blurred face.
        face_blurred: polygon2 is not empty, whether its rings could be read or not.
        problems: what the label holds that could not be understood, "key: value".
    """

    filename: str | None
    source: str | None
    width: int | None = None
    height: int | None = None
    front: bool | None = None
    horizontal: float | None = None
    age: int | None = None
    rgb: tuple[float, float, float] | None = None
    attributes: dict[str, str | None] = field(default_factory=dict)
    hair: list[np.ndarray] = field(default_factory=list)
    blurred: list[np.ndarray] = field(default_factory=list)
    face_blurred: bool = False
    problems: tuple[str, ...] = ()

    @property
    def blur_is_outlined(self) -> bool:
        """Whether `blurred` tells where the face is blurred; also where it is not blurred at all."""
        return bool(self.blurred) or not self.face_blurred

    @property
    def curl_class(self) -> str | None:
        """`vocabulary.CURL_CLASS` of the curl."""
        return CURL_CLASS.get(self.attributes.get("curl") or "")

    @property
    def has_bangs(self) -> bool | None:
        """`vocabulary.HAS_BANGS` of the bangs."""
        return HAS_BANGS.get(self.attributes.get("bangs") or "")


def parse_label(data: bytes) -> Label:
    """Read a label.

    Raises:
        BadLabel: not UTF-8 JSON, not an object with `filename` or `source`, or a filename that climbs out.
    """
    values, filename, source = _identified(data)
    problems: list[str] = []
    attributes = {column: _translate(values, key, problems) for column, (key, _) in ATTRIBUTES.items()}
    rgb = _rgb(values.get("rgb"), problems)
    hair, blurred = (_polygon(values, key, problems) for key in ("polygon1", "polygon2"))
    return Label(
        filename=filename,
        source=source,
        width=_understood(values, "width", _positive_int, problems),
        height=_understood(values, "height", _positive_int, problems),
        front=_understood(values, "front", _flag, problems),
        horizontal=_understood(values, "horizontal", _number, problems),
        age=_understood(values, "age", _age, problems),
        rgb=rgb,
        attributes=attributes,
        hair=hair.rings,
        blurred=blurred.rings,
        face_blurred=bool(blurred.rings or blurred.short),
        problems=tuple(problems),
    )


def parse_names(data: bytes) -> tuple[str | None, str | None]:
    """Only `filename` and `source` of a label: what pairing needs. Raises as `parse_label`."""
    return _identified(data)[1:]


def parse_outlines(data: bytes) -> Label:
    """A label without its attributes: what drawing masks needs, in half the time. Raises as `parse_label`."""
    values, filename, source = _identified(data)
    problems: list[str] = []
    hair, blurred = (_polygon(values, key, problems) for key in ("polygon1", "polygon2"))
    return Label(
        filename=filename,
        source=source,
        width=_understood(values, "width", _positive_int, problems),
        height=_understood(values, "height", _positive_int, problems),
        hair=hair.rings,
        blurred=blurred.rings,
        face_blurred=bool(blurred.rings or blurred.short),
        problems=tuple(problems),
    )


def _identified(data: bytes) -> tuple[dict[str, Any], str | None, str | None]:
    """A label's values, its filename and its source."""
    values = _load_object(data)
    filename, source = _base_name(clean_text(values.get("filename"))), clean_text(values.get("source"))
    if filename is None and source is None:
        raise BadLabel(Reason.NOT_A_LABEL, "it names neither a filename nor a source")
    return values, filename, source


def clean_text(value: object) -> str | None:
    """A label's string: UTF-8 read as latin-1 repaired, NFC, stripped; None for "", "nan", "none", null, non-text."""
    if isinstance(value, bool | list | dict) or value is None:
        return None
    text = unicodedata.normalize("NFC", _repair(str(value))).strip()
    text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates cannot be stored
    return None if text.lower() in ("", "nan", "none", "null") or "\x00" in text else text


def _repair(text: str) -> str:
    """Undo "UTF-8 read as latin-1 or cp1252"; text that is not such a case comes back as it is."""
    if text.isascii():
        return text
    data = bytearray()
    for character in text:
        if ord(character) < 256:
            data.append(ord(character))
            continue
        try:
            data += character.encode("cp1252")
        except UnicodeEncodeError:
            return text
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return text


def _load_object(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_LABEL_BYTES:
        raise BadLabel(Reason.NOT_A_LABEL, f"{len(data)} bytes is too large for a label")
    try:
        values = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadLabel(Reason.UNREADABLE_LABEL, f"not UTF-8 (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise BadLabel(Reason.UNREADABLE_LABEL, f"not JSON ({str(error)[:80]})") from error
    if not isinstance(values, dict):
        raise BadLabel(Reason.NOT_A_LABEL, f"a JSON {type(values).__name__}, not an object")
    return {_clean_key(key): value for key, value in values.items()}


@lru_cache(maxsize=4096)
def _clean_key(key: str) -> str:
    return _repair(key).strip().lower().replace("_", "-")


def _base_name(filename: str | None) -> str | None:
    if filename is None:
        return None
    path = PurePosixPath(PureWindowsPath(filename).as_posix())
    if ".." in path.parts or path.is_absolute() or PureWindowsPath(filename).drive:
        raise BadLabel(Reason.PATH_OUTSIDE_ROOT, f"filename {filename[:80]!r}")
    return path.name or None


_TABLES = dict(ATTRIBUTES.values())


def _translate(values: dict[str, Any], key: str, problems: list[str]) -> str | None:
    value = values.get(key)
    if value is None or isinstance(value, bool | list | dict):
        if not _is_missing(value):
            problems.append(_problem(key, value))
        return None
    english, problem = _english(key, str(value)[:200])
    if problem is not None:
        problems.append(problem)
    return english


@lru_cache(maxsize=16_384)
def _english(key: str, value: str) -> tuple[str | None, str | None]:
    """The English word and the problem, if any; the release has few values, over and over."""
    if key == "before-after" and value.strip().lower() == "none":
        return "none", None
    text = clean_text(value)
    if text is None:
        return None, None
    word = re.sub(r"^\d{4}\.", "", text) if key == "basestyle" else text
    english = _lookup(key).get(_key(word))
    return english, None if english is not None else f"{key}: {text[:40]}"


@cache
def _lookup(key: str) -> dict[str, str]:
    table = _TABLES[key]
    korean = {_key(word): english for word, english in table.items()}
    return {_key(english): english for english in table.values()} | korean


def _key(text: str) -> str:
    return re.sub(r"\s+", "", text).casefold()


def base_style_of_folder(name: str) -> str | None:
    """English base style of a folder `<NNNN>.<basestyle>`: by its word, else by its number."""
    number, _, word = unicodedata.normalize("NFC", _repair(name)).partition(".")
    if word in BASE_STYLE:
        return BASE_STYLE[word]
    styles = list(BASE_STYLE.values())
    return styles[int(number) - 1] if re.fullmatch(r"00[0-3]\d", number) and 1 <= int(number) <= len(styles) else None


def _polygon(values: dict[str, Any], key: str, problems: list[str]) -> Polygon:
    """A polygon; one that cannot be read is a problem, and no ring, but not an empty polygon either."""
    try:
        polygon = parse_polygon(values.get(key))
    except BadPolygon as error:
        problems.append(f"{key}: {error}")
        return Polygon([], short=1)
    if polygon.short:
        problems.append(f"{key}: a ring of fewer than 3 points")
    return polygon


def _understood(
    values: dict[str, Any], key: str, parse: Callable[[object], _Parsed | None], problems: list[str]
) -> _Parsed | None:
    """What `parse` makes of a value; one that is there and gives None is a problem."""
    value = values.get(key)
    parsed = parse(value)
    if parsed is None and not _is_missing(value):
        problems.append(_problem(key, value))
    return parsed


def _is_missing(value: object) -> bool:
    """Is it one of the ways to say that there is no value?"""
    if isinstance(value, bool | list | dict):
        return value in ([], {})
    return clean_text(value) is None and "\x00" not in str(value)


def _problem(key: str, value: object) -> str:
    return f"{key}: {clean_text(str(value)[:40].replace(chr(0), '?'))}"


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _positive_int(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and 1 <= number <= 1_000_000 else None


def _flag(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    text = (clean_text(value) or "").lower()
    return {"true": True, "1": True, "y": True, "false": False, "0": False, "n": False}.get(text)


def _age(value: object) -> int | None:
    found = re.match(r"\d{1,3}(?!\d)", clean_text(value) or "")
    return int(found.group()) if found else None


def _rgb(value: object, problems: list[str]) -> tuple[float, float, float] | None:
    if isinstance(value, str):
        text = clean_text(value)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text.strip("()[] ").split(",")
    if value is None or value in ([], {}):
        return None
    numbers = [_number(part) for part in value] if isinstance(value, list) else []
    if len(numbers) != 3 or any(number is None for number in numbers):
        problems.append(_problem("rgb", value))
        return None
    red, green, blue = (float(number or 0.0) for number in numbers)
    return red, green, blue
