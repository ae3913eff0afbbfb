"""One image examined: photo, label and training_face output read once, everything the catalog says about it.

Belongs here: what the catalog runs per image, in worker processes: which of the image's files is taken, and all that
is known of it. Does not belong here: decisions that need other images (pairing, shards, split).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from hair_pipeline.files import hash_bytes, is_whole_jpeg
from hair_pipeline.inputs.columns import EXAMINED, NO_FLAGS
from hair_pipeline.inputs.geometry import letterbox, same_framing
from hair_pipeline.inputs.k_hairstyle import (
    Rejected,
    decode_small,
    image_id_of,
    image_set_of,
    image_size,
    is_sure_of_source,
    kind_of,
    same_name,
    source_of,
)
from hair_pipeline.inputs.labels import BadLabel, Label, base_style_of_folder, parse_label, parse_outlines
from hair_pipeline.inputs.perceptual_hash import perceptual_hash
from hair_pipeline.inputs.polygons import draw_polygon, polygon_scale
from hair_pipeline.inputs.reader import passing_faults, read_bytes, read_if_there, read_spread
from hair_pipeline.inputs.reasons import FaceReason, Reason
from hair_pipeline.inputs.training_face import (
    MIN_FACE_FRACTION,
    MIN_HAIR_FRACTION,
    BadFace,
    Face,
    SheetMasks,
    choose_face,
    identity_reason,
    masks_of,
    parse_embedding,
    read_face_json,
)
from hair_pipeline.profile import InputsConfig
from hair_pipeline.vocabulary import ATTRIBUTES

REVISION = 6
"""Raised when the same files would be examined to another result: remembered rows are then made again."""
_HEAD_BYTES = 2**17
_BLOCK_BYTES, _BLOCKS = 4096, 4
"""A photo of another set is told by its head and blocks spread over it: a terabyte of raw photos is not read."""
_IMAGE_FAULTS = (Reason.JSON_AS_IMAGE, Reason.NOT_AN_IMAGE, Reason.TRUNCATED_IMAGE, Reason.UNREADABLE_IMAGE)
_SETS = ("mqset", "hqset", "rawset")
"""From the smallest to the largest."""


class Candidate(NamedTuple):
    """One file of an image: its path, and its label's path where it has one."""

    image: str
    label: str | None


class Task(NamedTuple):
    """One image to examine.

    Attributes:
        candidates: the files that bear its name, sorted by path: one, or copies of it, also in other sets.
        faces: the JSON paths of its faces.
        signature: 64 bits that change with any of these files.
    """

    candidates: tuple[Candidate, ...]
    faces: tuple[str, ...]
    signature: int


@dataclass(frozen=True)
class Examiner:
    """Examines tasks against the two roots; `size` is the side of the processed square."""

    k_hairstyle_root: Path
    training_face_root: Path
    config: InputsConfig
    size: int

    def __call__(self, tasks: Sequence[Task]) -> pa.RecordBatch:
        """The rows of some tasks: `remembered.SCHEMA`. An image that brings the examiner down does so alone."""
        try:
            return self._batch(tasks)
        except Exception as error:  # whatever hostile files provoke, in the examiner or on the way into columns
            if len(tasks) > 1:
                return pa.concat_batches([self([task]) for task in tasks])
            rows = [_plain_row(candidate) | _unforeseen(error) for candidate in tasks[0].candidates]
            return _as_batch(rows, [tasks[0].signature] * len(rows), [True] * len(rows))

    def _batch(self, tasks: Sequence[Task]) -> pa.RecordBatch:
        rows: list[dict[str, Any]] = []
        signatures: list[int] = []
        unsettled: list[bool] = []
        for task in tasks:
            with passing_faults() as faults:
                found = self.examine(task)
            rows += found
            signatures += [task.signature] * len(found)
            unsettled += [bool(faults)] * len(found)
        return _as_batch(rows, signatures, unsettled)

    def examine(self, task: Task) -> list[dict[str, Any]]:
        """One row per candidate: the first that can be used is accepted, the others are rejected with a reason."""
        rows: list[dict[str, Any]] = []
        accepted: dict[str, Any] | None = None
        for candidate in self._in_order(task):
            if accepted is None or candidate.label is None:
                rows.append(self._row(candidate, task.faces))
            else:
                rows.append(self._spare(candidate, accepted))
            if rows[-1]["accepted"]:
                accepted = rows[-1]
        if accepted is None:
            accepted = self._lend_labels(rows, task.faces)
        if accepted is not None:
            spares = [row for row in rows if row is not accepted]
            self._settle_unlabelled(accepted, spares)
            self._find_largest(accepted, spares)
        return rows

    def _in_order(self, task: Task) -> list[Candidate]:
        """Candidates, the best first: of the configured set (auto: the one training_face saw, else the smallest)."""
        candidates = list(task.candidates)
        if len(candidates) == 1:
            return candidates
        wanted = None if self.config.image_set != "auto" else self._sheet_size(task.faces)

        def rank(candidate: Candidate) -> tuple[bool, bool, int, int, str]:
            image_set = image_set_of(candidate.image)
            seen = wanted is not None and self._size(candidate.image) == wanted
            preferred = seen if self.config.image_set == "auto" else image_set == self.config.image_set
            order = _SETS.index(image_set) if image_set else len(_SETS)
            width, height = (0, 0) if image_set else self._size(candidate.image) or (0, 0)
            return candidate.label is None, not preferred, order, width * height, candidate.image

        return sorted(candidates, key=rank)

    def _sheet_size(self, faces: tuple[str, ...]) -> tuple[int, int] | None:
        """Size of the photo that training_face saw, by its sheet's header; None when no sheet says."""
        for path in faces:
            try:
                sheet = read_face_json(self.training_face_root, path).sheet_path
                width, height = image_size(read_if_there(self.training_face_root, sheet, _HEAD_BYTES) or b"")
            except (BadFace, Rejected, OSError):
                continue
            return width // 2, height // 2
        return None

    def _size(self, path: str) -> tuple[int, int] | None:
        try:
            return image_size(_read_head(self.k_hairstyle_root, path))
        except Rejected:
            return None

    def _row(self, candidate: Candidate, faces: tuple[str, ...]) -> dict[str, Any]:
        """A candidate examined in full."""
        row = _plain_row(candidate)
        try:
            if candidate.label is None:
                row |= _sizes(image_size(_read_head(self.k_hairstyle_root, candidate.image)))
                raise Rejected(Reason.IMAGE_WITHOUT_LABEL)
            self._examine(candidate.image, candidate.label, faces, row)
            row["accepted"] = True
        except (Rejected, BadLabel) as error:
            row |= {"reason": error.reason.value, "detail": error.detail or None}
        return row

    def _spare(self, candidate: Candidate, accepted: dict[str, Any]) -> dict[str, Any]:
        """A further file of an image already accepted: only its header is read."""
        row = _plain_row(candidate)
        try:
            row |= _sizes(image_size(_read_head(self.k_hairstyle_root, candidate.image)))
            raise Rejected(_why_spare(row, accepted), f"kept {accepted['image_path']}")
        except Rejected as error:
            row |= {"reason": error.reason.value, "detail": error.detail or None}
        return row

    def _lend_labels(self, rows: list[dict[str, Any]], faces: tuple[str, ...]) -> dict[str, Any] | None:
        """Try the labels that went to broken copies of an image on its files that have none.

        Returns:
            The row accepted then, if any. A file tried in vain says why, one not tried where its label went.
        """
        broken = [row for row in rows if row["label_path"] is not None and row["reason"] in _IMAGE_FAULTS]
        for place, row in enumerate(rows):
            if not broken or row["reason"] != Reason.IMAGE_WITHOUT_LABEL:
                continue
            owner = next((owner for owner in broken if self._may_borrow(row, owner)), None)
            if owner is None:
                row["detail"] = f"{broken[0]['label_path']} went to {broken[0]['image_path']}, which is broken"
                continue
            rows[place] = tried = self._row(Candidate(row["image_path"], owner["label_path"]), faces)
            if tried["accepted"]:
                detail = "; ".join(filter(None, (owner["detail"], f"kept {tried['image_path']}")))
                owner |= {"label_path": None, "detail": detail}
                return tried
            tried["label_path"] = None
        return None

    def _may_borrow(self, row: dict[str, Any], owner: dict[str, Any]) -> bool:
        """May a file take the label of a broken one? It must be of the same person, and of the same set, or else of the
        framing that the label names."""
        if None not in (row["source"], owner["source"]) and not same_name(row["source"], owner["source"]):
            return False
        if image_set_of(row["image_path"]) == image_set_of(owner["image_path"]):
            return True
        try:
            label = parse_outlines(_read(self.k_hairstyle_root, owner["label_path"], Reason.UNREADABLE_LABEL))
        except (Rejected, BadLabel):
            return False
        named = label.width is not None and label.height is not None
        return named and same_framing(row["width"], row["height"], label.width or 0, label.height or 0)

    def _settle_unlabelled(self, accepted: dict[str, Any], spares: list[dict[str, Any]]) -> None:
        """An image of another set needs no label of its own."""
        for row in spares:
            if row["reason"] == Reason.IMAGE_WITHOUT_LABEL:
                reason = _why_spare(row, accepted)
                if reason == Reason.OTHER_SET:
                    row |= {"reason": reason.value, "detail": f"kept {accepted['image_path']}"}

    def _find_largest(self, accepted: dict[str, Any], spares: list[dict[str, Any]]) -> None:
        """Point the accepted row to the largest whole photo of another set that a hair mask can be given to."""
        area = accepted["width"] * accepted["height"]
        larger = [
            row
            for row in spares
            if row["reason"] == Reason.OTHER_SET
            and row["width"] * row["height"] > area
            and (row["source"] is None or same_name(row["source"], accepted["source"]))
        ]
        for row in sorted(larger, key=lambda row: (-row["width"] * row["height"], row["image_path"])):
            label, label_bytes = self._usable_label(row, accepted)
            if label is None:
                continue
            try:
                head = _read_head(self.k_hairstyle_root, row["image_path"])
                blocks = _read_spread(self.k_hairstyle_root, row["image_path"])
                whole = not head.startswith(b"\xff\xd8") or self._ends(row["image_path"], blocks[-1])
            except Rejected:
                continue
            if not whole:
                row |= {"reason": Reason.TRUNCATED_IMAGE.value, "detail": "it has no end marker"}
                continue
            accepted |= {
                "largest_path": row["image_path"],
                "largest_label_path": label,
                "largest_width": row["width"],
                "largest_height": row["height"],
                "content_hash": hash_bytes(accepted["content_hash"], label_bytes, head, *blocks),
            }
            return

    def _ends(self, path: str, tail: bytes) -> bool:
        """Has a JPEG its end marker? All of it is read only where its tail does not say so."""
        return b"\xff\xd9" in tail[-1024:] or is_whole_jpeg(_read(self.k_hairstyle_root, path, Reason.UNREADABLE_IMAGE))

    def _usable_label(self, row: dict[str, Any], accepted: dict[str, Any]) -> tuple[str | None, bytes]:
        """The label to draw a larger photo's hair from: its own, else the accepted one's if both show the same.

        Returns:
            Its path, None if there is none; and what was read of a label of its own.
        """
        read = b""
        if row["label_path"] is not None:
            try:
                read = _read(self.k_hairstyle_root, row["label_path"], Reason.UNREADABLE_LABEL)
                label = parse_label(read)
                if label.hair and label.blur_is_outlined:
                    return str(row["label_path"]), read
            except (Rejected, BadLabel):
                pass
        sizes = (row["width"], row["height"], accepted["width"], accepted["height"])
        return (str(accepted["label_path"]) if same_framing(*sizes) else None), read

    def _examine(self, image: str, label_path: str, faces: tuple[str, ...], row: dict[str, Any]) -> None:
        photo = _read(self.k_hairstyle_root, image, Reason.UNREADABLE_IMAGE)
        width, height, small = decode_small(photo)
        row |= _sizes((width, height)) | {"perceptual_hash": perceptual_hash(small)}
        label_bytes = _read(self.k_hairstyle_root, label_path, Reason.UNREADABLE_LABEL)
        label = parse_label(label_bytes)
        _refuse_outline_without_scale(label, label_path, image)
        row |= _label_columns(label, image)
        _settle_source(row, label, image)
        if not row["source"]:
            raise Rejected(Reason.NO_SOURCE)
        geometry = letterbox(width, height, self.size)
        row |= {"scale": geometry.scale, "offset_x": geometry.offset_x, "offset_y": geometry.offset_y}
        face_bytes, masks = self._face(faces, row, label, width, height)
        self._hair(row, label, masks, width, height)
        row |= {"largest_path": image, "largest_label_path": label_path}
        row |= {"largest_width": width, "largest_height": height}
        row["content_hash"] = hash_bytes(photo, label_bytes, *face_bytes)

    def _face(
        self, faces: tuple[str, ...], row: dict[str, Any], label: Label, width: int, height: int
    ) -> tuple[list[bytes], SheetMasks | None]:
        """Fill the face and identity columns; return the bytes read and the sheet's masks."""
        root, read = self.training_face_root, []
        face: Face | None = None
        face_problem: FaceReason | None = None
        masks: SheetMasks | None = None
        sheet_problem: FaceReason | None = None
        embedding = None
        try:
            face = choose_face(root, list(faces), width, height, self.config)
            read = [_read_or_empty(root, path) for path in (face.path, face.embedding_path, face.sheet_path)]
            embedding = parse_embedding(read[1])
            masks = masks_of(face, read[2], width, height)
        except BadFace as error:
            if face is None or error.reason == FaceReason.SHEET_WRONG_SIZE:
                face, face_problem = None, error.reason  # a sheet of another photo: the box is not to be trusted
            sheet_problem = error.reason
            row["face_detail"] = error.detail or None
        if masks is not None and share(masks.face) < MIN_FACE_FRACTION:
            sheet_problem = FaceReason.NO_FACE_MASK
        identity = identity_reason(face, face_problem, label.face_blurred, embedding is not None, self.config)
        row |= {
            "has_face": face is not None,
            "face_reason": sheet_problem,
            "faces_found": len(faces),
            "identity_reliable": identity is None,
            "identity_reason": identity,
            "stage2": sheet_problem is None,
            "stage2_reason": sheet_problem,
        }
        if face is not None:
            row |= _face_columns(face)
        return read, masks

    def _hair(self, row: dict[str, Any], label: Label, masks: SheetMasks | None, width: int, height: int) -> None:
        """Fill the mask columns.

        Raises:
            Rejected: NO_HAIR_MASK.
        """
        polygon = draw_polygon(label.hair, width, height, polygon_scale((label.width, label.height), width, height))
        sheet = masks.hair if masks is not None and share(masks.hair) >= MIN_HAIR_FRACTION else None
        has_polygon = share(polygon) >= MIN_HAIR_FRACTION
        if sheet is None and not has_polygon:
            face = row["stage2_reason"] or FaceReason.NO_HAIR_IN_SHEET
            raise Rejected(Reason.NO_HAIR_MASK, f"training_face: {face}; polygon1: {'tiny' if label.hair else 'none'}")
        row["mask_origin"] = "polygon" if sheet is None else "training_face"
        row["hair_fraction"] = round(share(polygon if sheet is None else sheet), 6)
        if sheet is not None and has_polygon:
            iou = mask_iou(sheet, polygon)
            disagree = iou < self.config.min_mask_iou
            row |= {"mask_iou": round(iou, 6), "masks_disagree": disagree}
            if disagree:
                without_sheet = {"face_reason": FaceReason.MASKS_DISAGREE, "stage2_reason": FaceReason.MASKS_DISAGREE}
                row |= without_sheet | {"stage2": False, "mask_origin": "polygon"}
                row["hair_fraction"] = round(share(polygon), 6)


def _as_batch(rows: list[dict[str, Any]], signatures: list[int], unsettled: list[bool]) -> pa.RecordBatch:
    batch = pa.RecordBatch.from_pylist([NO_FLAGS | row for row in rows], schema=EXAMINED)
    batch = batch.append_column("signature", pa.array(signatures, pa.uint64()))
    return batch.append_column("unsettled", pa.array(unsettled, pa.bool_()))


def _unforeseen(error: Exception) -> dict[str, Any]:
    text = f"{type(error).__name__}: {error}"[:200].encode("utf-8", "replace").decode("utf-8")
    return {"reason": Reason.UNFORESEEN.value, "detail": text}


def share(mask: np.ndarray) -> float:
    """Share of a bool mask that is set."""
    return int(np.count_nonzero(mask)) / mask.size


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two bool masks of one shape; 0 when both are empty."""
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else 0.0


def _plain_row(candidate: Candidate) -> dict[str, Any]:
    return {
        "image_id": image_id_of(candidate.image),
        "source": source_of(candidate.image),
        "image_path": candidate.image,
        "label_path": candidate.label,
        "accepted": False,
    }


def _sizes(size: tuple[int, int]) -> dict[str, Any]:
    return {"width": size[0], "height": size[1]}


def _why_spare(row: dict[str, Any], accepted: dict[str, Any]) -> Reason:
    """Of another set by its folders or, where they do not say, by showing the same at another size."""
    image_set, size, kept = image_set_of(row["image_path"]), *((of["width"], of["height"]) for of in (row, accepted))
    if image_set is None:
        other = size != kept and same_framing(*size, *kept)
    else:
        other = image_set != image_set_of(accepted["image_path"])
    return Reason.OTHER_SET if other else Reason.DUPLICATE_IMAGE


def _read(root: Path, path: str, reason: Reason) -> bytes:
    try:
        return read_bytes(root, path)
    except OSError as error:
        raise Rejected(reason, str(error.strerror)) from error


def _read_head(root: Path, path: str) -> bytes:
    """Enough of an image for its size: where the metadata are longer, all of it."""
    try:
        head = read_bytes(root, path, _HEAD_BYTES)
        if len(head) == _HEAD_BYTES and kind_of(head) is None and not _has_size(head):
            head = read_bytes(root, path)
    except OSError as error:
        raise Rejected(Reason.UNREADABLE_IMAGE, str(error.strerror)) from error
    return head


def _has_size(head: bytes) -> bool:
    try:
        image_size(head)
    except Rejected:
        return False
    return True


def _read_spread(root: Path, path: str) -> list[bytes]:
    try:
        return read_spread(root, path, _BLOCK_BYTES, _BLOCKS)
    except OSError as error:
        raise Rejected(Reason.UNREADABLE_IMAGE, str(error.strerror)) from error


def _read_or_empty(root: Path, path: str) -> bytes:
    try:
        return read_if_there(root, path) or b""
    except OSError:
        return b""


def _label_columns(label: Label, image: str) -> dict[str, Any]:
    columns: dict[str, Any] = {name: label.attributes.get(name) for name in ATTRIBUTES}
    parts = image.split("/")
    if columns["base_style"] is None and len(parts) >= 3:
        columns["base_style"] = base_style_of_folder(parts[-3])
    return columns | {
        "curl_class": label.curl_class,
        "has_bangs": label.has_bangs,
        "front": label.front,
        "horizontal": label.horizontal,
        "age": label.age,
        "rgb": None if label.rgb is None else list(label.rgb),
        "face_blurred": label.face_blurred,
        "label_problems": "; ".join(label.problems) or None,
    }


def _refuse_outline_without_scale(label: Label, label_path: str, image: str) -> None:
    """Refuse a label of another set that does not say for which size its outlines are.

    Raises:
        Rejected: IMAGE_WITHOUT_LABEL.
    """
    sets = image_set_of(image), image_set_of(label_path)
    if None not in sets and sets[0] != sets[1] and label.width is None and label.height is None:
        detail = f"{label_path} is a label of {sets[1]} and names no width and height"
        raise Rejected(Reason.IMAGE_WITHOUT_LABEL, detail)


def _settle_source(row: dict[str, Any], label: Label, image: str) -> None:
    """Choose between the person the label names and the one the path names (`row["source"]`).

    One person must not become two, who may land on both sides of the split: so the path's spelling counts, and where
    they disagree the path if its folder and file name agree, else the label. A disagreement is a label problem.
    """
    named, found = label.source, row["source"]
    if named is None or found is None:
        row["source"] = named or found
    elif not same_name(named, found):
        problem = f"source: {named[:40]} (the path says {found})"
        row["label_problems"] = "; ".join(filter(None, (row["label_problems"], problem)))
        if not is_sure_of_source(image):
            row["source"] = named


def _face_columns(face: Face) -> dict[str, Any]:
    x1, y1, x2, y2 = face.box
    return {
        "face_path": face.path,
        "sheet_path": face.sheet_path,
        "embedding_path": face.embedding_path,
        "face_id": face.face_id,
        "box_x1": x1,
        "box_y1": y1,
        "box_x2": x2,
        "box_y2": y2,
        "yaw": face.yaw,
        "pitch": face.pitch,
        "roll": face.roll,
        "face_confidence": face.confidence,
        "embedding_model": face.embedding_model or None,
    }
