"""Customer photos of the A/B test, one at a time: with training_face's outputs, or with a bald image beside them.

Belongs here: what stands in a customers folder, and from a customer to a case. Does not belong here: drawing, and the
formats of training_face's outputs (`inputs.training_face`).

A customer is `<id>.jpg|.jpeg|.png` with either or both of
    training_face's outputs   `<id>[/<id>]/face_NN/...` right in the folder; where no customer has any there, in the
                              configured training_face root;
    a bald image              `<id>_bald.<png|jpg|jpeg>` beside it, or `bald/<id>.<png|jpg|jpeg>`: the same photo, same
                              size, its hair removed. What differs is then what is repainted, whatever made it.
Without training_face's outputs the face's place is not known: the customer counts for LPIPS, not for identity.

Each photo counts as a person; copies of one file are left out.

A photo is turned upright by its EXIF orientation and cut around the head, as serving does both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.cases import Case, make_case
from hair_pipeline.files import UnreadableImage, hash_bytes, hash_file
from hair_pipeline.inputs.geometry import PADDING
from hair_pipeline.inputs.hair_rim import REACH, with_rim
from hair_pipeline.inputs.head_crop import MARGIN, WHOLE, Framing, cut_photo, head_crop
from hair_pipeline.inputs.k_hairstyle import Rejected, check_image, image_id_of
from hair_pipeline.inputs.reasons import FaceReason
from hair_pipeline.inputs.samples import Photo, to_sample
from hair_pipeline.inputs.training_face import (
    MIN_FACE_FRACTION,
    MIN_HAIR_FRACTION,
    BadFace,
    Face,
    SheetMasks,
    choose_face,
    faces_of,
    identity_reason,
    index_faces,
    read_embedding,
)
from hair_pipeline.inputs.upright import UprightPhoto, decode_upright, read_face
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings

SUFFIXES = (".jpg", ".jpeg", ".png")
OTHER_FORMATS = (".heic", ".heif", ".webp", ".avif", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".gif")
"""Of photos that people send and that are not read."""
BALD_FOLDER, BALD_ENDING = "bald", "_bald"
UNREADABLE = "cannot be read"
CHANGED = 24
"""Gray levels by which a bald image differs where hair was removed; less is the noise of its JPEG."""


@dataclass(frozen=True)
class Customer:
    """Where a customer's files are.

    Attributes:
        id: the photo's stem. photo: its path. bald: the bald image, or None.
        faces: JSONs of training_face, relative to `root`.
    """

    id: str
    photo: Path
    bald: Path | None
    root: Path
    faces: tuple[str, ...]

    @property
    def files(self) -> list[Path]:
        """Everything that is read of this customer."""
        found = [self.photo] + ([self.bald] if self.bald else [])
        for name in self.faces:
            found += sorted(path for path in (self.root / name).parent.iterdir() if path.is_file())
        return found


@dataclass
class Problems:
    """What is missing, by customer.

    Attributes:
        left_out: file name -> why the customer takes no part.
        no_identity: id -> why the customer counts for LPIPS only.
    """

    left_out: dict[str, str] = field(default_factory=dict)
    no_identity: dict[str, str] = field(default_factory=dict)

    def as_lines(self) -> dict[str, str]:
        """Both, for the report."""
        return self.left_out | {f"{name}, identity only": reason for name, reason in self.no_identity.items()}


def find_customers(folder: Path, settings: Settings, problems: Problems) -> list[Customer]:
    """List the customers of a folder, by name; of the photos only those of equal size are read, to tell copies.

    Args:
        problems: receives what is named like a photo and is no file, photos in `OTHER_FORMATS`, names that are not
            UTF-8, a second photo with the id of another, and copies of one file.

    Raises:
        PipelineError: no such folder, or no photo in it.
    """
    if not folder.is_dir():
        raise PipelineError(
            "no such folder",
            file=folder,
            remedy="set HAIR_PIPELINE_CUSTOMERS_ROOT or --customers to a folder of customer photos",
        )
    pictures = []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES + OTHER_FORMATS):
        if (name := _storable(path.name)) != path.name:
            problems.left_out[name] = "its name is not UTF-8: rename it"
        elif path.suffix.lower() in OTHER_FORMATS:
            problems.left_out[name] = "is neither JPEG nor PNG: convert it"
        else:
            pictures.append(path)
    bald = {path.stem.removesuffix(BALD_ENDING): path for path in pictures if path.stem.endswith(BALD_ENDING)}
    bald_folder = folder / BALD_FOLDER
    if bald_folder.is_dir():
        bald |= {path.stem: path for path in sorted(bald_folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    photos: dict[str, Path] = {}
    for path in pictures:
        if path.stem.endswith(BALD_ENDING):
            continue
        if not path.is_file():
            problems.left_out[path.name] = "is no file, or a link that leads nowhere"
        elif (first := photos.setdefault(image_id_of(path.name), path)) != path:
            problems.left_out[path.name] = f"has the same id as {first.name}"
    if not photos:
        raise PipelineError(
            "holds no photo", file=folder, remedy="put <id>.jpg and training_face's <id>/face_01/ there"
        )
    _drop_copies(photos, problems)
    root, faces = _find_faces(folder, photos, settings, problems)
    return [
        Customer(name, path, bald.get(path.stem), root, tuple(faces.get(name, ()))) for name, path in photos.items()
    ]


def _storable(name: str) -> str:
    """The file name as text that any file can hold: bytes that are not UTF-8 are written as `\\xNN`."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _drop_copies(photos: dict[str, Path], problems: Problems) -> None:
    """Take out photos that equal an earlier one byte by byte: each photo counts as a person."""
    by_size: dict[int, list[str]] = {}
    for name, path in photos.items():
        by_size.setdefault(path.stat().st_size, []).append(name)
    for names in by_size.values():
        if len(names) == 1:
            continue
        first: dict[str, Path] = {}
        for name in names:
            path = photos[name]
            content = _hash(path)
            if not content.startswith(UNREADABLE) and (original := first.setdefault(content, path)) != path:
                del photos[name]
                problems.left_out[path.name] = f"the same file as {original.name}"


def _find_faces(
    folder: Path, photos: dict[str, Path], settings: Settings, problems: Problems
) -> tuple[Path, dict[str, list[str]]]:
    """The root of training_face's outputs, and id -> JSONs relative to it; photos that may not be looked up go."""
    faces: dict[str, list[str]] = {}
    for name, path in list(photos.items()):
        try:
            faces[name] = faces_of(folder, name)
        except OSError as error:
            del photos[name]
            problems.left_out[path.name] = f"training_face's outputs cannot be read ({error.strerror})"
    if any(faces.values()) or not settings.training_face_root.is_dir():
        return folder, faces
    return settings.training_face_root, index_faces(settings.training_face_root)


def fingerprint(customers: list[Customer]) -> str:
    """SHA-256 (hex) over the content of everything that is read, and how photos are framed and masks completed.

    A file that cannot be read counts as that; `customer_cases` says which.
    """
    parts = [(c.id, os.fsencode(path.name), _hash(path)) for c in customers for path in c.files]
    return hash_bytes(f"{MARGIN} {WHOLE} {REACH} {PADDING}", *(part for entry in parts for part in entry))


def _hash(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        return f"{UNREADABLE} ({error.strerror})"


def customer_cases(customers: list[Customer], profile: Profile, problems: Problems) -> Iterator[list[Case]]:
    """The customers' cases (their own hair is asked for) in batches; no more than one batch is held.

    Args:
        problems: receives what is missing, customer by customer; the others go on.
    """
    size = profile.evaluation.batch_size
    for start in range(0, len(customers), size):
        batch = []
        for customer in customers[start : start + size]:
            try:
                batch.append(_read_case(customer, profile, problems))
            except (Rejected, BadFace, UnreadableImage) as error:
                problems.left_out[customer.photo.name] = str(error).removesuffix(": ")
        yield batch


def _read_case(customer: Customer, profile: Profile, problems: Problems) -> Case:
    upright = _read(customer.photo)
    width, height = upright.size
    face, masks, why = _read_face(customer, upright, profile)
    removed = None if customer.bald is None else _removed(upright, customer.bald)
    if masks is None and removed is None:
        raise why or BadFace(FaceReason.NO_OUTPUT)
    hair = masks.hair if masks is not None else removed[1]  # type: ignore[index]
    if hair.mean() < MIN_HAIR_FRACTION:
        raise BadFace(FaceReason.NO_HAIR_IN_SHEET, "" if face is None else face.sheet_path)
    nothing = np.zeros((height, width), bool)
    box = None if face is None else np.array(face.box, np.float32)
    hair, skin = with_rim(upright.image, hair, nothing if masks is None else masks.face & ~hair, box)
    photo = Photo(
        image_id=customer.id,
        person=customer.id,
        image=upright.image,
        hair_mask=hair,
        face_mask=skin,
        blurred=nothing,
        box=box,
    )
    crop = head_crop(photo.hair_mask, photo.face_mask)
    sample = to_sample(cut_photo(photo, crop), profile.processing.size)
    identity = _identity(customer, face, profile, problems)
    case = make_case(sample, sample, identity, (None, None), profile, framing=Framing.of(upright, crop))
    if removed is None:
        return case
    without_hair = cut_photo(replace(photo, image=removed[0], hair_mask=removed[1]), crop)
    square = to_sample(without_hair, profile.processing.size)
    if not square.hair_mask.any():
        raise UnreadableImage("the bald image shows no removed hair around the head")
    bald = np.where(square.hair_mask[..., None], square.image, sample.image)
    return replace(case, bald=bald, repaint_mask=square.hair_mask)


def _read(path: Path) -> UprightPhoto:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"cannot be read ({error.strerror})") from error
    check_image(data)
    return decode_upright(data)


def _read_face(
    customer: Customer, photo: UprightPhoto, profile: Profile
) -> tuple[Face | None, SheetMasks | None, BadFace | None]:
    """The face, its masks, and why either is missing."""
    try:
        face, masks = read_face(photo, customer.root, list(customer.faces), profile.inputs)
    except BadFace as error:
        return _face_alone(customer, photo, profile), None, error
    if masks.face.mean() < MIN_FACE_FRACTION:
        return face, None, BadFace(FaceReason.NO_FACE_MASK, face.sheet_path)
    return face, masks, None


def _face_alone(customer: Customer, photo: UprightPhoto, profile: Profile) -> Face | None:
    """The face of a customer whose sheet cannot be used, for the embedding and the box; taken for upright."""
    try:
        return choose_face(customer.root, list(customer.faces), *photo.size, profile.inputs)
    except BadFace:
        return None


def _removed(photo: UprightPhoto, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The bald image, upright, and where it differs from the photo: bool, closed and without specks.

    Raises:
        UnreadableImage: it cannot be read, is of another size, or nothing was removed.
    """
    image = photo.image
    try:
        bald = photo.upright(_read(path).image)
    except (Rejected, UnreadableImage) as error:
        raise UnreadableImage(f"bald image {path.name}: {error}") from error
    if bald.shape != image.shape:
        raise UnreadableImage(
            f"bald image {path.name} is {bald.shape[1]}x{bald.shape[0]}, the photo {image.shape[1]}x{image.shape[0]}"
        )
    changed = (np.abs(bald.astype(np.int16) - image).max(2) > CHANGED).astype(np.uint8)
    radius = max(1, round(0.006 * max(image.shape[:2])))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    mask = cv2.morphologyEx(cv2.morphologyEx(changed, cv2.MORPH_CLOSE, kernel, iterations=2), cv2.MORPH_OPEN, kernel)
    if not mask.any():
        raise UnreadableImage(f"bald image {path.name} shows no removed hair: it equals the photo")
    return bald, mask.astype(bool)


def _identity(customer: Customer, face: Face | None, profile: Profile, problems: Problems) -> np.ndarray | None:
    """training_face's embedding where it can be relied on; else None, and the reason is noted."""
    vector = None if face is None else read_embedding(customer.root, face.embedding_path)
    reason = identity_reason(face, FaceReason.NO_OUTPUT, False, vector is not None, profile.inputs)
    if reason is not None:
        problems.no_identity[customer.id] = str(reason)
        return None
    return vector
