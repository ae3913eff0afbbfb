"""training_face's outputs: finding them, checking them, and reading masks from the 2x2 sheet. Read-only.

Belongs here: the JSON, the `.npy` and the sheet of one face. Does not belong here: what the face is used for.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import unicodedata
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import UnreadableImage, confined, decode_image
from hair_pipeline.inputs.inventory import folders_of, short_hash, walk
from hair_pipeline.inputs.reader import read_file
from hair_pipeline.inputs.reasons import FaceReason, IdentityReason
from hair_pipeline.inputs.workers import map_chunks
from hair_pipeline.profile import InputsConfig

EMBEDDING_DIM = 512
IDENTITY_MODEL = "InsightFace"
MAX_NORM_ERROR = 0.02
"""How far from 1 the norm of an embedding may be."""
MAX_OTHER_VALUES = 1e-3
"""Share of the mask quadrant's pixels that may be further than `VALUE_TOLERANCE` from 0, 128 and 255."""
VALUE_TOLERANCE = 8
MIN_FACE_FRACTION = 0.002
MIN_HAIR_FRACTION = 0.001
"""Masks covering less of the photo count as "found nothing"."""
_MAX_JSON_BYTES = 1_000_000
MAX_EMBEDDING_BYTES = 1_000_000
_FACE_FOLDER = re.compile(r"^face_(\d+)$", re.IGNORECASE)
_PLAIN_NAME = re.compile(r"^\w[\w.-]*$")
_DATE = re.compile(r"_(\d{8})$")
_FOLDERS_PER_CHUNK = 2000


class BadFace(Exception):
    """An output that cannot be used.

    Attributes:
        reason: one of `FaceReason`.
        detail: what was found.
    """

    def __init__(self, reason: FaceReason, detail: str = "") -> None:
        self.reason, self.detail = reason, _storable(detail)
        super().__init__(f"{reason}: {self.detail}")

    def of(self, path: str) -> BadFace:
        """The same fault, naming the file."""
        return BadFace(self.reason, f"{path}: {self.detail}".removesuffix(": "))


@dataclass(frozen=True)
class Face:
    """One face of training_face, as its JSON describes it.

    Attributes:
        path: of the JSON; sheet_path and embedding_path beside it; all relative to the root, posix.
        face_id: its number in the photo.
        box: x1, y1, x2, y2 in photo pixels.
        yaw, pitch, roll: degrees; None when missing.
        confidence: of the detector.
        embedding_model: "InsightFace" or "AdaFace"; their embeddings must never be compared.
    """

    path: str
    sheet_path: str
    embedding_path: str
    face_id: int
    box: tuple[float, float, float, float]
    yaw: float | None
    pitch: float | None
    roll: float | None
    confidence: float
    embedding_model: str

    @property
    def area(self) -> float:
        """Of the box, photo pixels squared."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


@dataclass(frozen=True)
class SheetMasks:
    """Masks from a sheet, both (H, W) bool at photo size. Hair and face never overlap."""

    hair: np.ndarray
    face: np.ndarray


class FaceFiles(NamedTuple):
    """training_face's files for one photo.

    Attributes:
        paths: the faces' JSONs relative to the root; of each `face_NN` those of the newest naming. Of one without any
            JSON, or of a folder that cannot be listed, the folder, ending in "/".
        stamp: 64 bits that change with any of the folder's files.
    """

    paths: tuple[str, ...]
    stamp: int


class FaceScan(NamedTuple):
    """What `scan_faces` finds.

    Attributes:
        files: stem (NFC) -> its files.
        unreadable: folders that cannot be listed, ending in "/" -> why.
    """

    files: dict[str, FaceFiles]
    unreadable: dict[str, str]


def scan_faces(root: Path) -> FaceScan:
    """Find every face JSON under `root` in one walk, by all cores.

    The stem is the folder above `face_NN`, which covers the stem nested twice; a date suffix of that folder
    (`<stem>_YYYYMMDD`) is known under both names. Of a `face_NN` that stands there under several dates, the newest
    counts: older names end in their date.

    Raises:
        PipelineError: `root` is missing or may not be read.
    """
    index: dict[str, FaceFiles] = {}
    unreadable: dict[str, str] = {}
    scanner = _FaceScanner(root)
    folders = folders_of(root)
    for found in map_chunks(scanner, folders, description="faces", chunk=_FOLDERS_PER_CHUNK, unit="folder"):
        for stem, jsons, mark, fault in found:
            if fault:
                unreadable[jsons[0]] = fault
            for name in {stem, _DATE.sub("", stem)}:
                known = index.get(name)
                if known is None:
                    index[name] = FaceFiles(jsons, mark)
                else:
                    index[name] = FaceFiles(_newest(known.paths + jsons), known.stamp ^ mark)
    return FaceScan(index, unreadable)


def count_unused(faces: FaceScan, used: Container[str]) -> int:
    """How many of training_face's outputs belong to no image.

    Args:
        faces: as `scan_faces` gives them. used: the ids of all images.
    """
    unused: set[str] = set()
    for stem, files in faces.files.items():
        if stem not in used and files.paths[0] not in faces.unreadable:
            folder = unicodedata.normalize("NFC", files.paths[0].rsplit("/", 3)[-3])
            if folder not in used and _DATE.sub("", folder) not in used:
                unused.add(_DATE.sub("", folder))
    return len(unused)


@dataclass(frozen=True)
class _FaceScanner:
    """Walks some folders of the root; picklable for the worker processes."""

    root: Path

    def __call__(self, folders: Sequence[str]) -> list[tuple[str, tuple[str, ...], int, str]]:
        """Stem, `FaceFiles.paths`, stamp and fault of every `face_NN` folder, and of every one that has a fault."""
        found = []
        for prefix, files, _, fault in walk(self.root, folders):
            parts = prefix.rsplit("/", 3)
            is_face = len(parts) >= 3 and _FACE_FOLDER.match(parts[-2]) is not None
            if not is_face and not fault:
                continue
            jsons = [prefix + name for name, _ in files if name.lower().endswith(".json") and not name.startswith(".")]
            mark = short_hash(prefix + fault + "\0".join(f"{name}\0{mark}" for name, mark in files))
            stem = unicodedata.normalize("NFC", parts[-3 if is_face else -2])
            found.append((stem, _newest(jsons or [prefix]), mark, fault))
        return found


def index_faces(root: Path) -> dict[str, list[str]]:
    """Find every face JSON under `root`: stem (NFC) -> JSON paths relative to `root`, as `FaceFiles.paths`."""
    index = {stem: [path for path in found.paths if path[-1] != "/"] for stem, found in scan_faces(root).files.items()}
    return {stem: paths for stem, paths in index.items() if paths}


def faces_of(root: Path, stem: str) -> list[str]:
    """The face JSONs of one photo, relative to `root`: only those in `<stem>[/<stem>]/face_NN` right under it.

    Nothing else is walked: a folder of the same name further down is another person's. Folders named
    `<stem>_YYYYMMDD` are looked at where there is none without a date; of those the newest counts.

    Args:
        stem: the photo's, NFC; its folder may be spelled NFD.

    Raises:
        OSError: a folder may not be read.
    """
    for folders in (_named(root, stem), _dated(root, stem)):
        inner = [path for folder in folders for path in (_named(folder, stem) or _dated(folder, stem))]
        found = [path for folder in folders + inner for path in _jsons_in(folder)]
        if found:
            return list(_newest([path.relative_to(root).as_posix() for path in found]))
    return []


def _named(parent: Path, stem: str) -> list[Path]:
    if not stem.strip("."):  # "." and ".." are no photo's folder
        return []
    spellings = dict.fromkeys(unicodedata.normalize(form, stem) for form in ("NFC", "NFD"))
    return [parent / name for name in spellings if (parent / name).is_dir()]


def _dated(parent: Path, stem: str) -> list[Path]:
    if not parent.is_dir():
        return []
    dated = [path for path in parent.iterdir() if _DATE.search(path.name) and _undated(path.name) == stem]
    return sorted(path for path in dated if path.is_dir())


def _undated(name: str) -> str:
    return _DATE.sub("", unicodedata.normalize("NFC", name))


def _jsons_in(folder: Path) -> list[Path]:
    """The JSONs of a photo's faces, of the folder above `face_NN`."""
    faces = [path for path in sorted(folder.iterdir()) if _FACE_FOLDER.match(path.name) and path.is_dir()]
    files = [path for face in faces for path in sorted(face.iterdir())]
    return [path for path in files if path.suffix.lower() == ".json" and not path.name.startswith(".")]


def _newest(paths: Sequence[str]) -> tuple[str, ...]:
    """Of each `face_NN` the paths of the newest naming, sorted."""
    if len(paths) == 1:
        return tuple(paths)
    ages = {path: _age(path) for path in paths}
    youngest: dict[str, int] = {}
    for path, age in ages.items():
        face = path.rsplit("/", 2)[-2].lower()
        youngest[face] = min(age, youngest.get(face, age))
    return tuple(sorted(path for path, age in ages.items() if age == youngest[path.rsplit("/", 2)[-2].lower()]))


def _age(path: str) -> int:
    """The smaller the newer: a path without a date is the newest, a folder without JSON is older than any.

    Of the dates that end the file's name and those of the folders it lies in, the newest counts.
    """
    if path.endswith("/"):
        return 1
    parts = path.rpartition(".")[0].split("/")
    return min((-int(found[1]) for part in parts if (found := _DATE.search(part))), default=-99999999)


def read_face_json(root: Path, path: str) -> Face:
    """Read and check one face's JSON.

    Raises:
        BadFace: BAD_JSON, UNREADABLE_FOLDER, BAD_BOX or PATH_OUTSIDE_ROOT.
    """
    if path.endswith("/"):
        raise _without_json(root, path)
    if path != _storable(path):
        raise BadFace(FaceReason.BAD_JSON, "a file name that is not UTF-8")
    try:
        values: Any = json.loads(read_file(root, path, _MAX_JSON_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadFace(FaceReason.BAD_JSON, str(error)[:80]) from error
    if not isinstance(values, dict):
        raise BadFace(FaceReason.BAD_JSON, f"a JSON {type(values).__name__}, not an object")
    box = values.get("bbox")
    numbers = [_number(value) for value in box] if isinstance(box, list) else []
    if len(numbers) != 4 or any(number is None for number in numbers):
        raise BadFace(FaceReason.BAD_JSON, f"bbox {str(box)[:60]}")
    x1, y1, x2, y2 = (float(number or 0.0) for number in numbers)
    if x2 - x1 < 1 or y2 - y1 < 1:
        raise BadFace(FaceReason.BAD_BOX, f"bbox {box}")
    model = values.get("embedding_model")
    return Face(
        path=path,
        sheet_path=_beside(root, path, values.get("visualization_path"), ".png"),
        embedding_path=_beside(root, path, values.get("embedding_path"), ".npy"),
        face_id=_face_id(values.get("face_id")),
        box=(x1, y1, x2, y2),
        yaw=_number(values.get("yaw")),
        pitch=_number(values.get("pitch")),
        roll=_number(values.get("roll")),
        confidence=_number(values.get("confidence")) or 0.0,
        embedding_model=_storable(model[:40]) if isinstance(model, str) else "",
    )


def _without_json(root: Path, folder: str) -> BadFace:
    try:
        os.listdir(f"{root}/{folder}")  # noqa: PTH208 (a name that is not UTF-8)
    except OSError as error:
        return BadFace(FaceReason.UNREADABLE_FOLDER, str(error.strerror))
    return BadFace(FaceReason.BAD_JSON, "no JSON")


def _storable(text: str) -> str:
    """A text without lone surrogates, which JSON and file names may hold and Parquet does not store."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _face_id(value: object) -> int:
    number = _number(value) or 0.0
    return int(number) if abs(number) < 2**31 else 0


def _beside(root: Path, path: str, named: object, suffix: str) -> str:
    """The file a JSON names, relative to `root`: beside the JSON, else the JSON's own name with another suffix."""
    folder = PurePosixPath(path).parent
    if isinstance(named, str) and named and "\x00" not in named and named == _storable(named):
        if _PLAIN_NAME.match(named):
            beside = f"{path.rpartition('/')[0]}/{named}"
            return beside if os.path.isfile(f"{root}/{beside}") else path.rpartition(".")[0] + suffix  # noqa: PTH113
        name = PurePosixPath(named.replace("\\", "/"))
        relative = folder / (name.name if name.is_absolute() else name)
        try:
            inside = confined(root, str(relative))
        except PipelineError as error:
            raise BadFace(FaceReason.PATH_OUTSIDE_ROOT, named[:80]) from error
        except OSError:
            inside = root / "missing"
        if os.path.isfile(inside):  # noqa: PTH113 (Path's raises for a name that is too long)
            return str(relative)
    return str(PurePosixPath(path).with_suffix(suffix))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def choose_face(root: Path, paths: list[str], width: int, height: int, config: InputsConfig) -> Face:
    """The face with the largest box among those with enough confidence.

    Args:
        root: training_face root. paths: the photo's face JSONs, relative to it.
        width, height: of the photo: the box must overlap it.
        config: `min_face_confidence`.

    Raises:
        BadFace: there is none; reason and name are those of the last candidate looked at.
    """
    problem = BadFace(FaceReason.NO_OUTPUT)
    faces: list[Face] = []
    for path in paths:
        try:
            face = read_face_json(root, path)
        except BadFace as error:
            problem = error.of(path)
            continue
        if min(face.box[2], width) - max(face.box[0], 0) < 1 or min(face.box[3], height) - max(face.box[1], 0) < 1:
            problem = BadFace(FaceReason.BAD_BOX, f"bbox {list(face.box)} lies outside {width}x{height}").of(path)
        elif face.confidence < config.min_face_confidence:
            problem = BadFace(FaceReason.LOW_CONFIDENCE, f"confidence {face.confidence:.3f}").of(path)
        else:
            faces.append(face)
    if not faces:
        raise problem
    return max(faces, key=lambda face: face.area)


def decode_sheet(data: bytes, width: int, height: int) -> SheetMasks:
    """Read hair and face masks from a sheet's top-right quadrant.

    Args:
        data: the sheet, an encoded image of 2 width x 2 height pixels.
        width, height: of the photo.

    Raises:
        BadFace: SHEET_UNREADABLE, SHEET_WRONG_SIZE, SHEET_OTHER_VALUES or SHEET_EMPTY.
    """
    try:
        sheet = decode_image(data)
    except UnreadableImage as error:
        raise BadFace(FaceReason.SHEET_UNREADABLE, str(error)) from error
    if sheet.shape[:2] != (2 * height, 2 * width):
        found = f"{sheet.shape[1]}x{sheet.shape[0]}"
        raise BadFace(FaceReason.SHEET_WRONG_SIZE, f"{found} and not {2 * width}x{2 * height}, twice the photo's size")
    return classify_quadrant(sheet[:height, width:])


_NEAREST = np.array([min((0, 128, 255), key=lambda known: abs(known - value)) for value in range(256)], np.uint8)
_STRAYS = np.array([abs(int(_NEAREST[value]) - value) > VALUE_TOLERANCE for value in range(256)], np.uint8)


def classify_quadrant(quadrant: np.ndarray) -> SheetMasks:
    """Classify a mask quadrant (H, W, 3) uint8 by the nearest of hair 0, other 128 and face 255.

    Raises:
        BadFace: SHEET_OTHER_VALUES or SHEET_EMPTY.
    """
    red, green, blue = cv2.split(np.ascontiguousarray(quadrant))
    apart = cv2.max(cv2.absdiff(red, green), cv2.absdiff(blue, green)) > VALUE_TOLERANCE
    share = np.count_nonzero(cv2.LUT(green, _STRAYS) | apart.view(np.uint8)) / green.size
    if share > MAX_OTHER_VALUES:
        raise BadFace(FaceReason.SHEET_OTHER_VALUES, f"{share:.1%} of the quadrant's pixels")
    values = cv2.LUT(green, _NEAREST)
    masks = SheetMasks(values == 0, values == 255)
    if not masks.hair.any() and not masks.face.any():
        raise BadFace(FaceReason.SHEET_EMPTY)
    return masks


def read_sheet(root: Path, face: Face, width: int, height: int) -> SheetMasks:
    """Read a face's masks. Raises `BadFace` as `masks_of`."""
    try:
        data = (root / face.sheet_path).read_bytes()
    except OSError:
        data = b""
    return masks_of(face, data, width, height)


def masks_of(face: Face, sheet: bytes, width: int, height: int) -> SheetMasks:
    """The masks in a face's sheet. Raises `BadFace` as `decode_sheet`, naming the file; SHEET_MISSING without bytes."""
    if not sheet:
        raise BadFace(FaceReason.SHEET_MISSING).of(face.sheet_path)
    try:
        return decode_sheet(sheet, width, height)
    except BadFace as error:
        raise error.of(face.sheet_path) from error


def _usual_header() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(EMBEDDING_DIM, "<f4"))
    return buffer.getvalue()[: -4 * EMBEDDING_DIM]


_USUAL_HEADER = _usual_header()


def parse_embedding(data: bytes) -> np.ndarray | None:
    """An embedding's `.npy` bytes -> (512,) float32, or None when its length, norm or values are wrong."""
    if data.startswith(_USUAL_HEADER) and len(data) == len(_USUAL_HEADER) + 4 * EMBEDDING_DIM:
        vector = np.frombuffer(data, np.float32, offset=len(_USUAL_HEADER))  # as NumPy would, without parsing Python
    else:
        try:
            vector = np.load(io.BytesIO(data), allow_pickle=False)
        except Exception:  # NumPy raises many types on hostile headers
            return None
    if not isinstance(vector, np.ndarray) or vector.size != EMBEDDING_DIM or vector.dtype.kind != "f":
        return None
    vector = vector.reshape(EMBEDDING_DIM).astype(np.float32)
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    return vector if math.isfinite(norm) and abs(norm - 1) <= MAX_NORM_ERROR else None


def read_embedding(root: Path, path: str) -> np.ndarray | None:
    """Read a face's embedding, (512,) float32; None when it is missing or wrong."""
    try:
        with (root / path).open("rb") as file:
            return parse_embedding(file.read(MAX_EMBEDDING_BYTES))
    except OSError:
        return None


def identity_reason(
    face: Face | None, face_problem: FaceReason | None, blurred: bool, embedding_ok: bool, config: InputsConfig
) -> IdentityReason | None:
    """Why the identity is not relied on; None when it is reliable."""
    if face is None:
        low = face_problem == FaceReason.LOW_CONFIDENCE
        return IdentityReason.LOW_CONFIDENCE if low else IdentityReason.NO_FACE
    checks = (
        (blurred, IdentityReason.BLURRED_FACE),
        (face.embedding_model != IDENTITY_MODEL, IdentityReason.OTHER_MODEL),
        (face.yaw is None, IdentityReason.UNKNOWN_POSE),
        (abs(face.yaw or 0.0) > config.max_identity_yaw, IdentityReason.LARGE_YAW),
        (not embedding_ok, IdentityReason.BAD_EMBEDDING),
    )
    return next((reason for failed, reason in checks if failed), None)
