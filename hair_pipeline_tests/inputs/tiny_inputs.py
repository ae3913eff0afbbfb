"""Very small inputs in both real formats, drawn with ellipses: for tests of every floor.

Belongs here: a fast writer (a few ms per image) of K-Hairstyle photos and labels, training_face outputs and
customers. Does not belong here: the sample people look at (`hair_pipeline.sample`), or broken files, which each
test makes itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

from hair_pipeline.settings import Settings

CURLS = ("X", "S", "SS", "C", "CC", "S3")
BANGS = ("해당없음", "풀뱅", "시스루", "살짝 넘긴스타일")
LENGTHS = ("장발", "단발", "중발")
COLORS = (("블랙", (38, 30, 28)), ("자연갈색", (92, 60, 40)), ("황갈색", (150, 108, 62)), ("적갈색", (120, 48, 36)))
_NOISE = np.tile(np.random.default_rng(0).normal(0, 4, (64, 64)).astype(np.float32), (32, 32))
STYLES = ((1, "가르마"), (14, "보브"), (31, "히피"))


@dataclass(frozen=True)
class TinyInputs:
    """Where the inputs stand and who is in them."""

    root: Path
    k_hairstyle: Path
    training_face: Path
    customers: Path
    sources: list[str]
    image_ids: list[str]

    def settings(self, **overrides: object) -> Settings:
        """Settings that read these inputs and write under `root / "training"`."""
        values: dict[str, object] = {
            "k_hairstyle_root": self.k_hairstyle,
            "training_face_root": self.training_face,
            "training_root": self.root / "training",
            "customers_root": self.customers,
            "models_dir": self.root / "models",
        }
        return Settings(**(values | overrides))  # type: ignore[arg-type]


@dataclass(frozen=True)
class TinyPicture:
    """One drawn photo with its masks."""

    photo: np.ndarray
    """(S, S, 3) uint8 RGB."""
    hair_mask: np.ndarray
    """(S, S) bool."""
    face_mask: np.ndarray
    """(S, S) bool; all False in a back view."""
    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels."""


def draw_person(person: int, view: int = 0, *, back: bool = False, size: int = 512, seed: int = 0) -> TinyPicture:
    """Draw one person: background, body, head, and hair with strands whose waves follow `CURLS[person]`."""
    rng = np.random.default_rng([seed, person, view])
    unit = size / 512
    center = np.array([256 + rng.integers(-25, 26), 225 + rng.integers(-15, 16)]) * unit
    photo = np.empty((size, size, 3), np.uint8)
    photo[:] = rng.integers(120, 230, 3)

    def ellipse(offset_y: float, half_width: float, half_height: float) -> np.ndarray:
        mask = np.zeros((size, size), np.uint8)
        middle = (round(center[0]), round(center[1] + offset_y * unit))
        cv2.ellipse(mask, middle, (round(half_width * unit), round(half_height * unit)), 0, 0, 360, 1, -1)
        return mask.astype(bool)

    skin = np.array([224, 178, 148]) - 14 * (person % 4)
    photo[ellipse(300, 170, 150)] = 40 + 37 * (person % 5)
    head = ellipse(10, 78, 104)
    neck = np.zeros((size, size), bool)
    neck[round(center[1] + 80 * unit) : round(center[1] + 160 * unit), round(center[0] - 32 * unit) :][
        :, : round(64 * unit)
    ] = True
    photo[head | neck] = skin
    hair = ellipse(-10, 112, 128)
    if LENGTHS[person % 3] != "단발":
        top, bottom = round(center[1]), round(center[1] + (210 if LENGTHS[person % 3] == "장발" else 130) * unit)
        hair[top:bottom, round(center[0] - 112 * unit) : round(center[0] + 112 * unit)] = True
    if not back:
        fringe = 20 if BANGS[person % 4] in ("풀뱅", "시스루") else 50
        opening = ellipse(10, 70, 98)
        opening[: round(center[1] - fringe * unit)] = False
        opening[round(center[1] + 70 * unit) :, round(center[0] - 55 * unit) : round(center[0] + 55 * unit)] = True
        hair &= ~opening
    rows = np.arange(size, dtype=np.float32)[:, None] / np.float32(unit)
    columns = np.arange(size, dtype=np.float32)[None] / np.float32(unit)
    wave = {"X": 0.0, "C": 3.0, "CC": 7.0, "S": 10.0, "SS": 14.0, "S3": 18.0}[CURLS[person % len(CURLS)]]
    strands = 18 * np.sin((columns + wave * np.sin(rows / 9)) * 0.9)
    strands += np.roll(_NOISE, int(rng.integers(64)))[:size, :size]
    for channel, color in enumerate(COLORS[person % 4][1]):
        photo[..., channel][hair] = np.clip(color + strands, 0, 255).astype(np.uint8)[hair]
    face = (head | neck) & ~hair if not back else np.zeros((size, size), bool)
    if not back:
        for side in (-1, 1):
            eye = (round(center[0] + side * 28 * unit), round(center[1] + 5 * unit))
            cv2.circle(photo, eye, max(1, round((6 + person % 3) * unit)), (30, 30, 40), -1)
        mouth = (round(center[0]), round(center[1] + 62 * unit))
        cv2.ellipse(photo, mouth, (round(22 * unit), round(7 * unit)), 0, 0, 360, (170, 70, 70), -1)
    x, y = center
    box = (x - 72 * unit, y - 70 * unit, x + 72 * unit, y + 112 * unit)
    return TinyPicture(photo, hair, face, tuple(float(value) for value in box))  # type: ignore[arg-type]


def place(picture: TinyPicture, width: int, height: int, x: int, y: int) -> TinyPicture:
    """The picture with its corner at x, y of a larger photo."""
    rows, columns = slice(y, y + picture.photo.shape[0]), slice(x, x + picture.photo.shape[1])
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    hair, face = np.zeros((height, width), bool), np.zeros((height, width), bool)
    photo[rows, columns] = picture.photo
    hair[rows, columns], face[rows, columns] = picture.hair_mask, picture.face_mask
    x1, y1, x2, y2 = picture.box
    return TinyPicture(photo, hair, face, (x1 + x, y1 + y, x2 + x, y2 + y))


def lay(picture: TinyPicture, orientation: int) -> TinyPicture:
    """What a camera stores of the picture with EXIF orientation 1, 3 (upside down) or 6 (on its side)."""
    turns = {1: 0, 3: 2, 6: 1}[orientation]
    height, width = picture.photo.shape[:2]
    x1, y1, x2, y2 = picture.box
    box = {1: picture.box, 3: (width - x2, height - y2, width - x1, height - y1), 6: (y1, width - x2, y2, width - x1)}
    photo, hair, face = (np.rot90(array, turns) for array in (picture.photo, picture.hair_mask, picture.face_mask))
    return TinyPicture(np.ascontiguousarray(photo), hair, face, box[orientation])


def write_tagged(path: Path, stored: np.ndarray, orientation: int, icc_profile: bytes | None = None) -> None:
    """Write stored pixels with an EXIF orientation and a colour profile."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stored).save(path, exif=exif, icc_profile=icc_profile)


def sheet(picture: TinyPicture) -> np.ndarray:
    """training_face's 2x2 sheet, (2S, 2S, 3) uint8: hair 0, face 255, rest 128 in the top-right quadrant.

    The other quadrants, which hold pictures of the photo in a real sheet, are plain here.
    """
    parsed = np.full(picture.photo.shape, 128, np.uint8)
    parsed[picture.face_mask] = 255
    parsed[picture.hair_mask] = 0
    plain = np.full(picture.photo.shape, 90, np.uint8)
    return np.vstack([np.hstack([plain, parsed]), np.hstack([plain, plain])])


def embedding(person: int, view: int = 0) -> np.ndarray:
    """(512,) float32 unit vector: one direction per person, a little noise per view."""
    vector = np.random.default_rng([7, person]).normal(size=512)
    vector += 0.2 * np.random.default_rng([8, person, view]).normal(size=512)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def write_face(folder: Path, picture: TinyPicture, vector: np.ndarray, *, number: int = 1, **changes: object) -> Path:
    """Write one `face_NN` as training_face does, under `folder`; `changes` overwrite JSON values.

    Returns:
        The path of the JSON file.
    """
    yaw = float(changes.get("yaw", 4.0))  # type: ignore[arg-type]
    name = f"face_{number:02d}_yaw_{abs(round(yaw))}"
    target = folder / f"face_{number:02d}"
    target.mkdir(parents=True, exist_ok=True)
    values: dict[str, object] = {
        "face_id": number,
        "yaw": yaw,
        "pitch": 1.5,
        "roll": 0.5,
        "bbox": [round(value, 1) for value in picture.box],
        "confidence": 0.85,
        "embedding_model": "InsightFace",
        "embedding_path": f"{name}.npy",
        "visualization_path": f"{name}.png",
        "embedding_dim": 512,
        "pose_method": "3DDFA",
        "yaw_threshold": 45.0,
        "timestamp": "2026-02-20T00:51:57.936563",
    }
    path = target / f"{name}.json"
    path.write_text(json.dumps(values | changes), encoding="utf-8")
    np.save(target / f"{name}.npy", vector)
    write_rgb(target / f"{name}.png", sheet(picture))
    return path


def write_rgb(path: Path, image: np.ndarray) -> None:
    """Write an RGB image; the suffix chooses JPEG or (fast) PNG."""
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1] if path.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 92]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image[..., ::-1], options)[1].tobytes())


def polygon(mask: np.ndarray) -> list[list[dict[str, float]]]:
    """The outlines of a mask as K-Hairstyle's rings of points (holes are rings of their own)."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return [[{"x": float(x), "y": float(y)} for x, y in ring[:, 0]] for ring in contours if len(ring) >= 3]


def label(source: str, filename: str, person: int, picture: TinyPicture, **changes: object) -> dict[str, object]:
    """A K-Hairstyle label; `changes` overwrite values (keys with a hyphen through a dict)."""
    number, style = STYLES[person % len(STYLES)]
    name, rgb = COLORS[person % 4]
    height, width = picture.photo.shape[:2]
    values: dict[str, object] = {
        "id": filename.rsplit(".", 1)[0],
        "source": source,
        "filename": filename,
        "path": f"{number:04d}.{style}",
        "width": width,
        "height": height,
        "front": bool(picture.face_mask.any()),
        "horizontal": 0 if picture.face_mask.any() else 180,
        "vertical": "중",
        "sex": "여",
        "age": str(20 + person),
        "basestyle": style,
        "basestyle-type": "장",
        "length": LENGTHS[person % 3],
        "curl": CURLS[person % len(CURLS)],
        "bang": BANGS[person % 4],
        "loss": "탈모아님",
        "side": "해당없음",
        "partition": "5:5",
        "color": name,
        "rgb": json.dumps([float(value) for value in rgb]),
        "exceptional": "해당없음",
        "hair-width": "보통",
        "natural-curl": "생머리",
        "damage": "건강모",
        "before-after": "none",
        "polygon1": json.dumps(polygon(picture.hair_mask)),
        "polygon2": "[]",
    }
    return values | changes


def write_tiny_inputs(
    root: Path,
    people: int = 3,
    views: int = 2,
    *,
    size: int = 512,
    seed: int = 0,
    back_view: bool = False,
    blurred_people: int = 0,
    customers: int = 0,
) -> TinyInputs:
    """Write photos, labels, training_face outputs and customers under `root`.

    Args:
        root: `k_hairstyle/`, `training_face/` and `customers/` are made in it.
        people: number of `source` folders.
        views: photos per person.
        size: side of the photos, pixels.
        seed: another seed draws other photos of the same people.
        back_view: each person's last view is from behind and has no training_face output.
        blurred_people: this many people (the last ones) have a blurred face and `polygon2` set.
        customers: customer photos, with their training_face outputs beside them.
    """
    made = TinyInputs(root, root / "k_hairstyle", root / "training_face", root / "customers", [], [])
    for person in range(people):
        source = f"CP{100000 + 37 * person}"
        number, style = STYLES[person % len(STYLES)]
        inner = Path("0002.mqset") / f"{number:04d}.{style}" / f"{person + 1:04d}.{source}"
        made.sources.append(source)
        for view in range(views):
            back = back_view and view == views - 1
            picture = draw_person(person, view, back=back, size=size, seed=seed)
            stem, changes = f"{source}-{view + 1:03d}", {}
            if person >= people - blurred_people and not back:
                x1, y1, x2, y2 = (round(value) for value in picture.box)
                picture.photo[y1:y2, x1:x2] = cv2.blur(picture.photo[y1:y2, x1:x2], (41, 41))
                ring = [{"x": x, "y": y} for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))]
                changes["polygon2"] = json.dumps([ring])
            write_rgb(made.k_hairstyle / "Training/mqset/images" / inner / f"{stem}.jpg", picture.photo)
            path = made.k_hairstyle / "Training/mqset/labels" / inner / f"{stem.replace('-', '_')}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = label(source, f"{stem}.jpg", person, picture, **changes)
            path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
            if not back:
                write_face(made.training_face / stem, picture, embedding(person, view))
            made.image_ids.append(stem)
    for customer in range(customers):
        picture = draw_person(1000 + customer, 0, size=size, seed=seed + 1)
        write_rgb(made.customers / f"customer_{customer:03d}.jpg", picture.photo)
        write_face(made.customers / f"customer_{customer:03d}", picture, embedding(1000 + customer))
    return made
