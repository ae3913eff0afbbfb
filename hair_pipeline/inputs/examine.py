"""One image examined: photo, label and training_face output read once, everything the catalog says about it.

Belongs here: the function the catalog runs per image, in worker processes. Does not belong here: decisions that need
other images (pairing, duplicates, shards, split).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hair_pipeline.files import hash_bytes
from hair_pipeline.inputs.geometry import letterbox
from hair_pipeline.inputs.k_hairstyle import Rejected, check_image, image_id_of, source_of
from hair_pipeline.inputs.labels import BadLabel, Label, base_style_of_folder, parse_label
from hair_pipeline.inputs.polygons import draw_polygon, polygon_scale
from hair_pipeline.inputs.reasons import FaceReason, Reason
from hair_pipeline.inputs.training_face import (
    MIN_FACE_FRACTION,
    MIN_HAIR_FRACTION,
    BadFace,
    Face,
    SheetMasks,
    choose_face,
    decode_sheet,
    identity_reason,
    parse_embedding,
)
from hair_pipeline.profile import InputsConfig
from hair_pipeline.vocabulary import ATTRIBUTES


@dataclass(frozen=True)
class Task:
    """One image to examine: its path, its label's path, and the JSON paths of its faces."""

    image: str
    label: str
    faces: tuple[str, ...]


@dataclass(frozen=True)
class Examiner:
    """Examines tasks against the two roots; `size` is the side of the processed square."""

    k_hairstyle_root: Path
    training_face_root: Path
    config: InputsConfig
    size: int

    def __call__(self, task: Task) -> dict[str, Any]:
        """The image's catalog row; when rejected, `accepted` is False and `reason` and `detail` say why."""
        row: dict[str, Any] = {
            "image_id": image_id_of(task.image),
            "source": source_of(task.image),
            "image_path": task.image,
            "label_path": task.label,
            "accepted": False,
        }
        try:
            self._examine(task, row)
            row["accepted"] = True
        except (Rejected, BadLabel) as error:
            row |= {"reason": error.reason.value, "detail": error.detail or None}
        return row

    def _examine(self, task: Task, row: dict[str, Any]) -> None:
        photo = _read(self.k_hairstyle_root / task.image, Reason.UNREADABLE_IMAGE)
        width, height = check_image(photo)
        row |= {"width": width, "height": height}
        label_bytes = _read(self.k_hairstyle_root / task.label, Reason.UNREADABLE_LABEL)
        label = parse_label(label_bytes)
        row |= _label_columns(label, task.image)
        row["source"] = label.source or row["source"]
        if not row["source"]:
            raise Rejected(Reason.NO_SOURCE)
        geometry = letterbox(width, height, self.size)
        row |= {"scale": geometry.scale, "offset_x": geometry.offset_x, "offset_y": geometry.offset_y}
        face_bytes, masks = self._face(task, row, label, width, height)
        self._hair(row, label, masks, width, height)
        row |= {"largest_path": task.image, "largest_label_path": task.label}
        row |= {"largest_width": width, "largest_height": height}
        row["content_hash"] = hash_bytes(photo, label_bytes, *face_bytes)

    def _face(
        self, task: Task, row: dict[str, Any], label: Label, width: int, height: int
    ) -> tuple[list[bytes], SheetMasks | None]:
        """Fill the face and identity columns; return the bytes read and the sheet's masks."""
        root, read = self.training_face_root, []
        face: Face | None = None
        face_problem: FaceReason | None = None
        masks: SheetMasks | None = None
        sheet_problem: FaceReason | None = None
        embedding = None
        try:
            face = choose_face(root, list(task.faces), width, height, self.config)
            read = [_read_or_empty(root / path) for path in (face.path, face.embedding_path, face.sheet_path)]
            embedding = parse_embedding(read[1])
            masks = _usable_masks(read[2], width, height)
        except BadFace as error:
            if face is None or error.reason == FaceReason.SHEET_WRONG_SIZE:
                face, face_problem = None, error.reason  # a sheet of another photo: the box is not to be trusted
            sheet_problem = error.reason
            row["face_detail"] = error.detail or None
        if masks is not None and masks.face.mean() < MIN_FACE_FRACTION:
            sheet_problem = FaceReason.NO_FACE_MASK
        identity = identity_reason(face, face_problem, bool(label.blurred), embedding is not None, self.config)
        row |= {
            "has_face": face is not None,
            "face_reason": sheet_problem,
            "faces_found": len(task.faces),
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
        sheet = masks.hair if masks is not None and masks.hair.mean() >= MIN_HAIR_FRACTION else None
        has_polygon = polygon.mean() >= MIN_HAIR_FRACTION
        if sheet is None and not has_polygon:
            face = row["stage2_reason"] or FaceReason.NO_HAIR_IN_SHEET
            raise Rejected(Reason.NO_HAIR_MASK, f"training_face: {face}; polygon1: {'tiny' if label.hair else 'none'}")
        row["mask_origin"] = "polygon" if sheet is None else "training_face"
        row["hair_fraction"] = round(float((polygon if sheet is None else sheet).mean()), 6)
        if sheet is not None and has_polygon:
            iou = mask_iou(sheet, polygon)
            row |= {"mask_iou": round(iou, 6), "masks_disagree": iou < self.config.min_mask_iou}


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two bool masks of one shape; 0 when both are empty."""
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else 0.0


def _usable_masks(sheet: bytes, width: int, height: int) -> SheetMasks:
    if not sheet:
        raise BadFace(FaceReason.SHEET_MISSING)
    return decode_sheet(sheet, width, height)


def _read(path: Path, reason: Reason) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Rejected(reason, str(error.strerror)) from error


def _read_or_empty(path: Path) -> bytes:
    try:
        return path.read_bytes()
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
        "face_blurred": bool(label.blurred),
        "label_problems": "; ".join(label.problems) or None,
    }


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
