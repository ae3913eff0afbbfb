"""The K-Hairstyle tree: which files there are, which label belongs to which image, and whether an image is whole.

Belongs here: layouts (parallel and merged trees), names, pairing, the image check. Does not belong here: a label's
content (`labels`) and the catalog's rows (`catalog`).
"""

from __future__ import annotations

import io
import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import MAX_IMAGE_PIXELS
from hair_pipeline.inputs.reasons import Reason

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png")
LABEL_SUFFIXES = (".json",)
ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".7z", ".rar")
MAX_STEM_BYTES = 200
_SOURCE_FOLDER = re.compile(r"^\d{4}\.(?P<source>.+)$")
_SOURCE_NAME = re.compile(r"^(?P<source>[A-Za-z]{2,3}\d+)[-_]")


class Rejected(Exception):
    """A file that does not become an accepted image.

    Attributes:
        reason: one of `Reason`.
        detail: what was found.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


@dataclass
class Listing:
    """The files under a root, as sorted posix paths relative to it."""

    images: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    rejected: list[tuple[str, Reason]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Files found."""
        return len(self.images) + len(self.labels) + len(self.rejected)


def walk_files(root: Path) -> list[str]:
    """Every file under `root`, sorted, as posix paths relative to it; linked folders are followed once.

    Raises:
        PipelineError: `root` is missing, or a folder may not be read.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_refuse):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        inner = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if inner == "." else inner + "/"
        found.extend(prefix + name for name in files)
    return sorted(found)


def _refuse(error: OSError) -> None:
    remedy = "check HAIR_PIPELINE_K_HAIRSTYLE_ROOT, HAIR_PIPELINE_TRAINING_FACE_ROOT and the permissions"
    raise PipelineError(f"the folder cannot be read ({error.strerror})", file=error.filename, remedy=remedy) from error


def list_files(root: Path) -> Listing:
    """Sort the files under `root` into images, labels and the rest, by extension (any case)."""
    listing = Listing()
    for path in walk_files(root):
        name = path.rsplit("/", 1)[-1]
        stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix.lower()
        if not _is_utf8(path) or len(os.fsencode(stem)) > MAX_STEM_BYTES:
            listing.rejected.append((path, Reason.BAD_FILE_NAME))
        elif name.startswith(".") or suffix not in IMAGE_SUFFIXES + LABEL_SUFFIXES + ARCHIVE_SUFFIXES:
            listing.rejected.append((path, Reason.UNKNOWN_FILE))
        elif suffix in ARCHIVE_SUFFIXES:
            listing.rejected.append((path, Reason.ARCHIVE))
        else:
            (listing.images if suffix in IMAGE_SUFFIXES else listing.labels).append(path)
    return listing


def _is_utf8(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def image_id_of(path: str) -> str:
    """The image id: the file's base name without extension, NFC."""
    return unicodedata.normalize("NFC", PurePosixPath(path).stem)


def source_of(path: str) -> str | None:
    """The person a path names: the folder `<NNNN>.<SOURCE>` right above the file, else the file name's prefix."""
    pure = PurePosixPath(path)
    name = _SOURCE_NAME.match(pure.name)
    folder = _SOURCE_FOLDER.match(pure.parent.name)
    if folder and (name is None or name["source"] == folder["source"]):
        return unicodedata.normalize("NFC", folder["source"])
    return name["source"] if name else None


@dataclass(frozen=True)
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

    Where several images bear the name (Training and Validation, or several sets), the label takes the one in its
    own folder, or in the folder parallel to it (`labels` for `images`), else the first without a label. A label
    without `filename` counts as naming its own stem with `-` for `_`. Names are compared after NFC, first exactly,
    then without regard to case and extension.
    """
    remaining = dict.fromkeys(images)
    exact: dict[str, list[str]] = {}
    loose: dict[str, list[str]] = {}
    for image in remaining:
        name = unicodedata.normalize("NFC", PurePosixPath(image).name)
        exact.setdefault(name, []).append(image)
        loose.setdefault(_loose(name), []).append(image)
    result = Pairing()
    for label in labels:
        name = label.filename or PurePosixPath(label.path).stem.replace("_", "-")
        bearers = exact.get(name) or loose.get(_loose(name)) or []
        free = [image for image in bearers if image in remaining]
        if not bearers:
            result.labels.append((label, Reason.LABEL_WITHOUT_IMAGE, f"no image named {name!r}"))
        elif not free:
            result.labels.append((label, Reason.DUPLICATE_LABEL, f"{bearers[0]} already has a label"))
        else:
            folder = _folder_key(label.path)
            image = min(free, key=lambda path: (_folder_key(path) != folder, path))
            del remaining[image]
            result.pairs.append((image, label))
    result.images = list(remaining)
    result.pairs.sort(key=lambda pair: pair[0])
    return result


def _loose(name: str) -> str:
    return PurePosixPath(name).stem.casefold().replace("_", "-")


def _folder_key(path: str) -> str:
    """A folder's path with the parallel trees' `images` and `labels` made equal."""
    parts = [unicodedata.normalize("NFC", part) for part in PurePosixPath(path).parent.parts]
    return "/".join("images" if part.lower() in ("labels", "label", "images", "image") else part for part in parts)


def check_image(data: bytes) -> tuple[int, int]:
    """Check that `data` is a whole image by decoding it (JPEG at an eighth of its size).

    Returns:
        Width and height in pixels, EXIF rotation ignored.

    Raises:
        Rejected: JSON_AS_IMAGE, NOT_AN_IMAGE, TRUNCATED_IMAGE or UNREADABLE_IMAGE.
    """
    is_jpeg = data.startswith(b"\xff\xd8\xff")
    if not is_jpeg and not data.startswith(b"\x89PNG\r\n\x1a\n"):
        if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
            raise Rejected(Reason.JSON_AS_IMAGE)
        raise Rejected(Reason.NOT_AN_IMAGE, f"begins with {data[:4].hex(' ') or 'nothing: 0 bytes'}")
    if is_jpeg and b"\xff\xd9" not in data[-1024:]:
        raise Rejected(Reason.TRUNCATED_IMAGE, "it has no end marker")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise Rejected(Reason.UNREADABLE_IMAGE, f"{width}x{height} pixels are too many")
            if is_jpeg:
                image.draft("L", (max(1, width // 8), max(1, height // 8)))
            image.load()
    except Rejected:
        raise
    except Exception as error:  # Pillow raises many types on broken files
        ends_early = any(word in str(error).lower() for word in ("truncated", "broken"))
        reason = Reason.TRUNCATED_IMAGE if ends_early else Reason.UNREADABLE_IMAGE
        raise Rejected(reason, str(error)[:80]) from error
    return width, height
