"""training_face's side of the sample: the JSON, the embedding and the 2x2 sheet of each face.

Belongs here: writing of that format. Does not belong here: reading it (`inputs.training_face`).
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from datetime import datetime, timedelta
from pathlib import Path

import cv2
import numpy as np

from hair_pipeline.files import write_bytes
from hair_pipeline.sample.geometry import SIZE
from hair_pipeline.sample.identity import EMBEDDING_DIM, embed
from hair_pipeline.sample.people import Person, View
from hair_pipeline.sample.render import Photo

HAIR, REST, FACE = 0, 128, 255
"""Values of the mask quadrant."""
_START = datetime(2026, 2, 20, 0, 51, 57, 936563)
_YAW_THRESHOLD = 45.0


def encode_png(image: np.ndarray) -> bytes:
    """A lossless PNG of an RGB uint8 array, twice as fast as OpenCV's: every row is stored as its change to the last.

    Args:
        image: uint8 (H, W, 3).
    """
    height, width = image.shape[:2]
    rows = np.ascontiguousarray(image).reshape(height, -1)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 2  # filter type "up"
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    out = io.BytesIO()
    out.write(b"\x89PNG\r\n\x1a\n")
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 1)), (b"IEND", b"")):
        out.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return out.getvalue()


def mask_quadrant(photo: Photo) -> np.ndarray:
    """uint8 (H, W): hair 0, face with ears and neck 255, everything else 128."""
    quadrant = np.full(photo.hair.shape, REST, np.uint8)
    quadrant[photo.skin] = FACE
    quadrant[photo.hair] = HAIR
    return quadrant


def make_sheet(photo: Photo) -> np.ndarray:
    """The 2x2 sheet, uint8 (2H, 2W, 3): box, mask, landmarks, red overlay.

    Only the mask is at full detail; the three pictures are pixel-doubled, which halves the file.
    """
    half = cv2.resize(photo.image, (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA)
    boxed, marked, overlay = half.copy(), half.copy(), half.copy()
    if photo.box is not None:
        x0, y0, x1, y1 = (round(v / 2) for v in photo.box)
        cv2.rectangle(boxed, (x0, y0), (x1, y1), (0, 255, 0), 1)
    for x, y in photo.landmarks / 2:
        cv2.circle(marked, (round(float(x)), round(float(y))), 2, (0, 255, 255), -1)
    skin = cv2.resize(photo.skin.astype(np.uint8), (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_NEAREST) > 0
    overlay[skin] = overlay[skin] // 2 + np.array([127, 0, 0], np.uint8)
    boxed, marked, overlay = (a.repeat(2, 0).repeat(2, 1) for a in (boxed, marked, overlay))
    mask = mask_quadrant(photo)[..., None].repeat(3, 2)
    return np.concatenate([np.concatenate([boxed, mask], 1), np.concatenate([marked, overlay], 1)], 0)


def write_face_output(root: Path, stem: str, person: Person, view: View, photo: Photo, *, plain: bool = False) -> Path:
    """Write what training_face would for one photo with a face.

    Some stems are nested twice, some names carry a date, some photos have a second, smaller and less certain face;
    `plain` leaves these out.

    Returns:
        the first face's JSON path.
    """
    if photo.box is None:
        raise ValueError(f"{stem}: no face to write")
    rng = np.random.default_rng([view.seed, 61])
    folder = root / stem
    nested, dated, second = rng.random(3) < (0.15, 0.08, 0.08)
    if nested and not plain:
        folder = folder / stem
    suffix = "_20260111" if dated and not plain else ""
    sheet = encode_png(make_sheet(photo))
    yaw = float(np.clip(view.yaw + rng.normal(0, 1.0), -99, 99))
    blurred = photo.blur is not None
    certain = float(0.9 - 0.16 * (abs(yaw) / 90) ** 2 - 0.12 * blurred + rng.uniform(-0.05, 0.05))
    model = "InsightFace" if abs(yaw) < _YAW_THRESHOLD else "AdaFace"
    vector = embed(person.identity, model, rng, blurred=blurred)
    path = _write_face(folder, 1, view, yaw, photo.box, certain, model, vector, sheet, suffix)
    if second and not plain:
        x, y = float(rng.uniform(4, 40)), float(rng.uniform(4, 60))
        noise = rng.standard_normal(EMBEDDING_DIM)
        other = (noise / np.linalg.norm(noise)).astype(np.float32)
        box = (x, y, x + 38.0, y + 49.0)
        _write_face(folder, 2, view, float(rng.uniform(-20, 20)), box, 0.34, "InsightFace", other, sheet, suffix)
    return path


def _write_face(
    folder: Path,
    number: int,
    view: View,
    yaw: float,
    box: tuple[float, float, float, float],
    confidence: float,
    model: str,
    vector: np.ndarray,
    sheet: bytes,
    suffix: str,
) -> Path:
    name = f"face_{number:02d}"
    stem = f"{name}_yaw_{int(yaw)}{suffix}"
    folder = folder / name
    buffer = io.BytesIO()
    np.save(buffer, vector)
    write_bytes(folder / f"{stem}.npy", buffer.getvalue())
    write_bytes(folder / f"{stem}.png", sheet)
    record = {
        "face_id": number,
        "yaw": round(yaw, 2),
        "pitch": round(view.pitch, 2),
        "roll": round(view.roll, 2),
        "bbox": [round(v, 1) for v in box],
        "confidence": round(confidence, 4),
        "embedding_model": model,
        "embedding_path": f"{stem}.npy",
        "visualization_path": f"{stem}.png",
        "embedding_dim": EMBEDDING_DIM,
        "pose_method": "3DDFA",
        "yaw_threshold": _YAW_THRESHOLD,
        "timestamp": (_START + timedelta(seconds=view.seed % 86400)).isoformat(),
    }
    path = folder / f"{stem}.json"
    write_bytes(path, json.dumps(record, ensure_ascii=False).encode())
    return path
