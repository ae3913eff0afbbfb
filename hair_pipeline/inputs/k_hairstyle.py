"""The K-Hairstyle tree: which files there are, which label belongs to which image, and whether an image is whole.

Belongs here: layouts (parallel and merged trees), names, pairing, the image check. Does not belong here: listing
files (`inventory`), a label's content (`labels`) and the catalog's rows (`catalog`).
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image

from hair_pipeline.files import MAX_IMAGE_PIXELS, is_whole_jpeg
from hair_pipeline.inputs.jpeg import lost_data, small_gray
from hair_pipeline.inputs.reasons import Reason

_SOURCE_FOLDER = re.compile(r"^\d{4}\.(?P<source>.+)$")
_SOURCE_NAME = re.compile(r"^(?P<source>[A-Za-z]{2,3}\d+)[-_]")
_ARCHIVE_NAME = re.compile(r"\.zip!?$", re.IGNORECASE)
_SET = re.compile(r"(raw|hq|mq)[ _-]?set")
_SHORT_SET = re.compile(r"(?<![a-z0-9])(raw|hq|mq)(?![a-z0-9])")
_HALF = re.compile(r"(?:^|/)(training|validation)(?=/|\.zip!|$)")


class Rejected(Exception):
    """A file that does not become an accepted image.

    Attributes:
        reason: one of `Reason`.
        detail: what was found.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


def image_id_of(path: str) -> str:
    """The image id: the file's base name without extension, NFC."""
    return _nfc(path.rpartition("/")[2].rpartition(".")[0] or path.rpartition("/")[2])


def source_of(path: str) -> str | None:
    """The person a path names: the folder `<NNNN>.<SOURCE>` right above the file, else the file name's prefix.

    Where the two name different people, the file name counts; where they only differ in case, the folder. An archive
    per person (`<NNNN>.<SOURCE>.zip`) counts as that folder.
    """
    folder, name = _sources_in(path)
    return folder if folder and (name is None or same_name(folder, name)) else name


def is_sure_of_source(path: str) -> bool:
    """Do the folder and the file name both name a person, and the same one?"""
    folder, name = _sources_in(path)
    return folder is not None and name is not None and same_name(folder, name)


def same_name(first: str, second: str) -> bool:
    """Are two people's names equal but for case?"""
    return first == second or first.casefold() == second.casefold()


def _sources_in(path: str) -> tuple[str | None, str | None]:
    """The people named by the folder and by the file name."""
    folder_path, _, file = path.rpartition("/")
    folder = _SOURCE_FOLDER.match(_ARCHIVE_NAME.sub("", folder_path.rpartition("/")[2]))
    name = _SOURCE_NAME.match(file)
    return _nfc(folder["source"]) if folder else None, name["source"] if name else None


def image_set_of(path: str) -> str | None:
    """Which of the release's sets a path lies in: "rawset", "hqset" or "mqset"; None when no folder says so."""
    return _part_of_release(path.rpartition("/")[0])[0]


@dataclass(frozen=True, slots=True)
class LabelName:
    """What pairing knows of one label."""

    path: str
    filename: str | None
    source: str | None


@dataclass
class Pairing:
    """The outcome: each image and each label stands in exactly one of these."""

    pairs: list[tuple[str, LabelName]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    labels: list[tuple[LabelName, Reason, str]] = field(default_factory=list)


def pair(images: Iterable[str], labels: Iterable[LabelName]) -> Pairing:
    """Give each image its label: the label's `filename` is the image's base name.

    Where several images bear the name (Training and Validation, or several sets), every label first takes the one in
    its own folder, or in the folder parallel to it (`labels` for `images`, archives alike); then the labels left over
    take one of their own set and half of the release; only then do the rest take the first image without a label. A
    label without `filename` counts as naming its own stem with `-` for `_`. Names are compared after NFC, first
    exactly, then without regard to case and extension (for the first image anywhere: only where none bears it exactly).
    Of two labels that name the same image, one that is called like it comes first.
    """
    bearers = _Bearers(images)
    result = Pairing()
    waiting = sorted(labels, key=_is_called_otherwise)
    for place_of in (_folder_key, _part_of_release, _anywhere):
        away: list[LabelName] = []
        for label in waiting:
            image = bearers.take(label, place_of)
            if image is None:
                away.append(label)
            else:
                result.pairs.append((image, label))
        waiting = away
    for label in waiting:
        if others := bearers.of(label):
            result.labels.append((label, Reason.DUPLICATE_LABEL, f"{others[0]} already has a label"))
        else:
            result.labels.append((label, Reason.LABEL_WITHOUT_IMAGE, f"no image named {_named(label)!r}"))
    result.images = bearers.left
    result.pairs.sort(key=lambda pair: pair[0])
    return result


class _Bearers:
    """Images by name, each given away once."""

    def __init__(self, images: Iterable[str]) -> None:
        self._left = dict.fromkeys(images)
        self._exact: dict[str, list[str]] = {}
        for image in self._left:
            self._exact.setdefault(_nfc(image.rpartition("/")[2]), []).append(image)
        self._loose: dict[str, list[str]] | None = None

    @property
    def left(self) -> list[str]:
        """Images without a label."""
        return list(self._left)

    def of(self, label: LabelName) -> list[str]:
        """All images that bear the label's name, in the order given: exactly, or else loosely."""
        return self._exact.get(_named(label)) or self._of_loosely(label)

    def _of_loosely(self, label: LabelName) -> list[str]:
        if self._loose is None:
            self._loose = {}
            for exact, images in self._exact.items():
                self._loose.setdefault(_loose(exact), []).extend(images)
        return self._loose.get(_loose(_named(label)), [])

    def take(self, label: LabelName, place_of: Callable[[str], Hashable]) -> str | None:
        """The first of them without a label whose folder is the same place as the label's; it is given away."""
        place = place_of(label.path.rpartition("/")[0])
        found = self._first_at(place, self.of(label), place_of)
        if found is None and place is not None:
            found = self._first_at(place, self._of_loosely(label), place_of)
        if found is not None:
            del self._left[found]
        return found

    def _first_at(self, place: Hashable, images: list[str], place_of: Callable[[str], Hashable]) -> str | None:
        return next((image for image in images if image in self._left and place_of(_folder(image)) == place), None)


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _is_called_otherwise(label: LabelName) -> bool:
    """Does a label's own name differ from that of the image it names?"""
    return label.filename is not None and _loose(_nfc(label.path.rpartition("/")[2])) != _loose(label.filename)


def _named(label: LabelName) -> str:
    return label.filename or label.path.rpartition("/")[2].rpartition(".")[0].replace("_", "-")


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _loose(name: str) -> str:
    return (name.rpartition(".")[0] or name).casefold().replace("_", "-")


@lru_cache(maxsize=100_000)
def _folder_key(folder: str) -> str:
    """A folder's path with the parallel trees' `images` and `labels` made equal, and archives made folders."""
    parts = [_ARCHIVE_NAME.sub("", _nfc(part)) for part in folder.split("/")]
    return "/".join("images" if part.lower() in ("labels", "label", "images", "image") else part for part in parts)


@lru_cache(maxsize=100_000)
def _part_of_release(folder: str) -> tuple[str | None, str | None]:
    """The set and the half ("training", "validation") of the release that a folder lies in, as far as its path says."""
    folder = folder.lower()
    sets, halves = _SET.findall(folder) or _SHORT_SET.findall(folder), _HALF.findall(folder)
    return (f"{sets[-1]}set" if sets else None), (halves[-1] if halves else None)


def _anywhere(_: str) -> None:
    """Every folder is the same place."""


def kind_of(head: bytes) -> Reason | None:
    """Why a file named like an image is none, judged by its first bytes; None for a JPEG or PNG."""
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        return None
    is_json = head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"["))
    return Reason.JSON_AS_IMAGE if is_json else Reason.NOT_AN_IMAGE


def image_size(head: bytes) -> tuple[int, int]:
    """Width and height from the start of an image file, EXIF rotation ignored; nothing is decoded.

    Raises:
        Rejected: JSON_AS_IMAGE, NOT_AN_IMAGE or UNREADABLE_IMAGE.
    """
    with _opened(head) as image:
        return image.size


def _opened(data: bytes) -> Image.Image:
    """An image whose header was read and whose size is allowed."""
    reason = kind_of(data)
    if reason is not None:
        raise Rejected(
            reason, "" if reason == Reason.JSON_AS_IMAGE else f"begins with {data[:4].hex(' ') or 'nothing'}"
        )
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
    except Exception as error:  # Pillow raises many types on broken files
        raise _broken(error) from error
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise Rejected(Reason.UNREADABLE_IMAGE, f"{width}x{height} pixels are too many")
    return image


def decode_small(data: bytes) -> tuple[int, int, np.ndarray]:
    """Check that `data` is a whole image by decoding it (a JPEG at down to an eighth of its size).

    Returns:
        Width and height in pixels, EXIF rotation ignored, and the small gray image (h, w) uint8.

    Raises:
        Rejected: JSON_AS_IMAGE, NOT_AN_IMAGE, TRUNCATED_IMAGE or UNREADABLE_IMAGE.
    """
    with _opened(data) as image:
        width, height = image.size
        is_jpeg = data.startswith(b"\xff\xd8\xff")
        if is_jpeg and not is_whole_jpeg(data):
            raise Rejected(Reason.TRUNCATED_IMAGE, "it has no end marker")
        try:
            small = small_gray(image)
            lost = lost_data(data, small) if is_jpeg else ""
        except Exception as error:
            raise _broken(error) from error
    if lost:
        raise Rejected(Reason.TRUNCATED_IMAGE, lost)
    return width, height, small


def check_image(data: bytes) -> tuple[int, int]:
    """Width and height of a whole image. Raises as `decode_small`."""
    return decode_small(data)[:2]


def _broken(error: Exception) -> Rejected:
    early = any(word in str(error).lower() for word in ("truncated", "broken"))
    return Rejected(Reason.TRUNCATED_IMAGE if early else Reason.UNREADABLE_IMAGE, str(error)[:80])
