"""Every known fault of the two input formats, written on purpose, with what a reader should make of it.

Belongs here: broken files for tests of the readers. Does not belong here: sound samples (`write`).
"""

from __future__ import annotations

import io
import json
import struct
import unicodedata
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hair_pipeline.files import encode_image, write_bytes, write_json
from hair_pipeline.sample.face_output import encode_png, make_sheet, write_face_output
from hair_pipeline.sample.labels import make_label, style_folder
from hair_pipeline.sample.people import Person, View, make_people, make_views
from hair_pipeline.sample.render import Photo, build_model, render

_FIRST_PERSON = 100_000
"""Index of the person whose photos are broken; far from everybody else."""


@dataclass(frozen=True)
class _Case:
    """One broken file set: the pieces that a fault then changes."""

    source: str
    person: Person
    view: View
    photo: Photo
    label: dict[str, Any]
    images: Path
    labels: Path
    faces: Path
    ending: str = ""

    @property
    def stem(self) -> str:
        return f"{self.source}-{self.view.number:03d}{self.ending}"

    def write(self, *, jpeg: bytes | None = None, extension: str = ".jpg", label: object = None) -> None:
        """Write the photo (or `jpeg`) and the label (or `label`)."""
        self.write_image(jpeg, extension)
        self.write_label(self.label if label is None else label)

    def write_image(self, jpeg: bytes | None = None, extension: str = ".jpg") -> None:
        data = encode_image(self.photo.image, ".jpg", 93) if jpeg is None else jpeg
        write_bytes(self.images / f"{self.stem}{extension}", data)

    def write_label(self, label: object) -> None:
        data = label if isinstance(label, bytes) else json.dumps(label, ensure_ascii=False).encode()
        write_bytes(self.labels / f"{self.stem.replace('-', '_')}.json", data)

    def write_face(self, photo: Photo | None = None) -> Path:
        return write_face_output(self.faces, self.stem, self.person, self.view, photo or self.photo, plain=True)


def _with_orientation(jpeg: bytes) -> bytes:
    """The JPEG with an EXIF block that asks viewers to turn it by 90 degrees."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    tiff = b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry + struct.pack("<I", 0)
    block = b"Exif\x00\x00" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


def _map_strings(value: object, change: Any) -> Any:
    if isinstance(value, dict):
        return {change(k): _map_strings(v, change) for k, v in value.items()}
    return change(value) if isinstance(value, str) else value


def _half_polygon(text: str) -> str:
    rings = [[{"x": p["x"] / 2, "y": p["y"] / 2} for p in ring] for ring in json.loads(text)]
    return json.dumps(rings)


def _expected(**values: object) -> dict[str, object]:
    return {"accepted": True, **values}


def write_faults(out: Path, seed: int) -> int:
    """Write each fault under a person `FAULT<nn>` of its own, and `<out>/faults.json`.

    `faults.json` is a list of objects: `fault`, `source`, `image_id`, and `expect`: column -> value of the catalog
    (`accepted`, `reason`, `face_reason`, `identity_reason`, ...).

    Returns:
        how many faults were written.
    """
    person = replace(make_people(1, seed + _FIRST_PERSON)[0], blurred=False)
    model = build_model(person)
    view = make_views(person, 1)[0]
    photo = render(model, view)
    records: list[dict[str, object]] = []

    def case(fault: str, expect: dict[str, object], ending: str = "") -> _Case:
        source = f"FAULT{len(records) + 1:02d}"
        folder = f"0002.mqset/{style_folder(person)}/{9000 + len(records):04d}.{source}"
        name = f"{source}-{view.number:03d}{ending}.jpg"
        label = make_label(replace(person, source=source), view, photo, name, folder)
        label |= {"width": 512, "height": 512}
        root = out / "k_hairstyle" / "Training" / "mqset"
        made = _Case(
            source,
            person,
            view,
            photo,
            label,
            root / "images" / folder,
            root / "labels" / folder,
            out / "training_face",
            ending,
        )
        records.append({"fault": fault, "source": source, "image_id": made.stem, "expect": expect})
        return made

    _write_file_faults(case)
    _write_text_faults(case, person.hair.length)
    _write_polygon_faults(case)
    _write_face_faults(case)
    _write_more_face_faults(case)
    _write_layout_faults(case)
    _write_archive_faults(case)
    _write_copy_faults(case)
    write_json(out / "faults.json", records)
    return len(records)


def _rejected(reason: str) -> dict[str, object]:
    return {"accepted": False, "reason": reason}


def _write_file_faults(case: Any) -> None:
    made = case("JSON disguised as .jpg", _rejected("json_as_image"))
    made.write(jpeg=json.dumps(made.label, ensure_ascii=False).encode())
    made = case("label without image", _rejected("label_without_image"))
    made.write_label(made.label)
    case("image without label", _rejected("image_without_label")).write_image()
    made = case("truncated JPEG", _rejected("truncated_image"))
    jpeg = encode_image(made.photo.image, ".jpg", 93)
    made.write(jpeg=jpeg[: len(jpeg) * 2 // 3])
    made = case("mixed-case extension", _expected())
    made.write(extension=".JpG", label=made.label | {"filename": f"{made.stem}.JpG"})
    made.write_face()
    made = case("EXIF orientation", _expected(width=512, height=512))
    made.write(jpeg=_with_orientation(jpeg))
    made.write_face()
    made = case("JSON that is not a label", _rejected("not_a_label"))
    made.write_label(["not", "a", "label"])
    made = case("label that is not UTF-8 JSON", _rejected("unreadable_label"))
    made.write_label(b'{"source": "\xff\xfe')
    made = case("filename climbs out of the root", _rejected("path_outside_root"))
    made.write_label(made.label | {"filename": "../../../../../../outside.jpg"})


def _write_layout_faults(case: Any) -> None:
    made = case("label beside the image (merged tree)", _expected(mask_origin="polygon"))
    replace(made, labels=made.images).write()
    made = case("image of the same name in Training and Validation", _expected(mask_origin="polygon"))
    made.write()
    replace(made, images=_in_validation(made.images), labels=_in_validation(made.labels)).write()
    made = case("the same image in a larger set", _expected(width=512, largest_width=1024, largest_height=1024))
    made.write()
    larger = np.ascontiguousarray(made.photo.image.repeat(2, 0).repeat(2, 1))
    rings = [[{"x": p["x"] * 2, "y": p["y"] * 2} for p in ring] for ring in json.loads(made.label["polygon1"])]
    label = made.label | {"width": 1024, "height": 1024, "polygon1": json.dumps(rings)}
    for kind in ("images", "labels"):
        folder = str(getattr(made, kind)).replace("mqset", "hqset").replace("0002.", "0001.")
        made = replace(made, **{kind: Path(folder)})
    made.write(jpeg=encode_image(larger, ".jpg", 93), label=label)
    made = case("file that is neither image nor label", _rejected("unknown_file"))
    write_bytes(made.images / f"{made.stem}.txt", b"notes")
    made = case("width that is not a number", _expected(width=512, mask_origin="polygon"))
    made.write(label=made.label | {"width": "nan", "height": "none"})
    made = case("backslashes in the label's filename", _expected(mask_origin="polygon"))
    made.write(label=made.label | {"filename": f"images\\{made.stem}.jpg"})


def _write_copy_faults(case: Any) -> None:
    """What goes wrong when files are copied."""
    case("empty file", _rejected("not_an_image")).write(jpeg=b"")
    made = case("JPEG cut and closed", _rejected("truncated_image"))
    jpeg = encode_image(made.photo.image, ".jpg", 93)
    made.write(jpeg=jpeg[: len(jpeg) // 2] + jpeg[-2:])
    made = case("JPEG with zeros in the place of data", _rejected("truncated_image"))
    made.write(jpeg=jpeg[: len(jpeg) // 3] + bytes(len(jpeg) - len(jpeg) // 3 - 2) + jpeg[-2:])
    made = case("NFD file name", _expected(mask_origin="polygon"), ending=".머리")
    replace(made, ending=unicodedata.normalize("NFD", made.ending)).write_image()
    made.write_label(made.label)
    made = case("broken copy that has the label", _expected(mask_origin="polygon"))
    made.write(jpeg=json.dumps(made.label, ensure_ascii=False).encode())
    replace(made, images=_in_validation(made.images)).write_image()


def _in_validation(folder: Path) -> Path:
    return Path(*("Validation" if part == "Training" else part for part in folder.parts))


def _write_archive_faults(case: Any) -> None:
    def downloads(made: _Case) -> Path:
        return made.images.parents[2]

    made = case("zips as downloaded: nested, names without the UTF-8 flag", _expected(mask_origin="training_face"))
    jpeg = encode_image(made.photo.image, ".jpg", 93)
    inner = "/".join(made.images.parts[-3:])
    label = json.dumps(made.label, ensure_ascii=False).encode()
    nested = make_zip({f"{inner}/{made.stem.replace('-', '_')}.json": label})
    write_bytes(downloads(made) / f"{made.source}.zip", make_zip({f"{inner}/{made.stem}.jpg": jpeg}))
    write_bytes(downloads(made).parent / "labels" / "labels.zip", make_zip({f"{made.source}.zip": nested}))
    made.write_face()
    made = case("zip entry that climbs out", _rejected("path_outside_root"))
    write_bytes(downloads(made) / f"{made.source}.zip", make_zip({f"../../{made.stem}.jpg": jpeg}))
    made = case("zip bomb", _rejected("suspicious_archive"))
    write_bytes(downloads(made) / f"{made.source}.zip", make_zip({f"{made.stem}.jpg": bytes(2**23)}))
    made = case("damaged zip", _rejected("unreadable_archive"))
    write_bytes(downloads(made) / f"{made.stem}.zip", b"PK\x03\x04" + bytes(100))
    made = case("zip without files", _rejected("empty_archive"))
    write_bytes(downloads(made) / f"{made.stem}.zip", make_zip({}))
    made = case("zip without files in a zip", _rejected("empty_archive"))
    write_bytes(downloads(made) / f"{made.source}.zip", make_zip({f"{made.stem}.zip": make_zip({})}))
    made = case("archive of another kind", _rejected("archive"))
    write_bytes(downloads(made) / f"{made.stem}.rar", b"Rar!\x1a\x07\x00")


def make_zip(entries: dict[str, bytes]) -> bytes:
    """A zip whose names are UTF-8 without the UTF-8 flag, as Korean tools write it (Python then reads CP437)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            info = _UnflaggedName(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return buffer.getvalue()


class _UnflaggedName(zipfile.ZipInfo):
    """An entry whose UTF-8 name is not marked as such."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode(), self.flag_bits & ~0x800


def _write_more_face_faults(case: Any) -> None:
    def changed(fault: str, expect: dict[str, object], **values: object) -> None:
        made = case(fault, _expected(**expect))
        made.write()
        path = made.write_face()
        write_bytes(path, json.dumps(json.loads(path.read_bytes()) | values).encode())

    changed(
        "AdaFace embedding", {"identity_reason": "other_model", "stage2": True}, embedding_model="AdaFace", yaw=61.0
    )
    changed("face of low confidence", {"face_reason": "low_confidence", "has_face": False}, confidence=0.11)
    changed("box outside the photo", {"face_reason": "bad_box"}, bbox=[900, 900, 950, 950])
    changed("path that climbs out", {"face_reason": "path_outside_root"}, embedding_path="../../../../x.npy")
    made = case("no training_face output", _expected(face_reason="no_output", mask_origin="polygon", stage2=False))
    made.write()
    made = case("blurred face", _expected(identity_reason="blurred_face", stage2=True))
    made.write(label=made.label | {"polygon2": made.label["polygon1"]})
    made.write_face()
    made = case("masks that disagree", _expected(masks_disagree=True))
    corner = [{"x": 0, "y": 0}, {"x": 90, "y": 0}, {"x": 0, "y": 90}]
    made.write(label=made.label | {"polygon1": json.dumps([corner])})
    made.write_face()
    made = case("stem nested twice", _expected(has_face=True, stage2=True))
    made.write()
    replace(made, faces=made.faces / made.stem).write_face()
    made = case("date at the end of the names", _expected(has_face=True, identity_reason=None))
    made.write()
    for path in sorted(made.write_face().parent.iterdir()):
        path.rename(path.with_stem(path.stem + "_20250101"))
    made = case("several faces", _expected(faces_found=2, face_id=1))
    made.write()
    first = made.write_face()
    values = json.loads(first.read_bytes())
    other = first.parents[1] / "face_02" / first.name.replace("face_01", "face_02")
    small = values | {"face_id": 2, "bbox": [4.0, 4.0, 40.0, 50.0], "confidence": 0.99}
    write_bytes(other, json.dumps(small).encode())


def _write_text_faults(case: Any, length: str) -> None:
    made = case("width and height disagree", _expected(width=512, height=512))
    label = made.label | {"width": 256, "height": 256, "polygon1": _half_polygon(made.label["polygon1"])}
    made.write(label=label)
    made.write_face()
    made = case("width is not a number", _expected())
    made.write(label=made.label | {"width": "nan", "height": ""})
    made = case("NFD strings", _expected(length=length))
    made.write(label=_map_strings(made.label, lambda s: unicodedata.normalize("NFD", s)))
    made = case("mojibake strings", _expected(length=length))
    made.write(label=_map_strings(made.label, lambda s: s.encode().decode("latin-1")))


def _write_polygon_faults(case: Any) -> None:
    made = case("polygon as a flat list of points", _expected(mask_origin="polygon"))
    largest = json.loads(made.label["polygon1"])[0]
    made.write(label=made.label | {"polygon1": json.dumps(largest)})
    made = case("polygon already parsed", _expected(mask_origin="polygon"))
    made.write(label=made.label | {"polygon1": json.loads(made.label["polygon1"])})
    for text, value in (("'[]'", "[]"), ("''", ""), ("null", None)):
        made = case(f"polygon {text}, no face output", _rejected("no_hair_mask"))
        made.write(label=made.label | {"polygon1": value})
    made = case("polygon absent, with face output", _expected(mask_origin="training_face"))
    made.write(label={k: v for k, v in made.label.items() if k != "polygon1"})
    made.write_face()


def _write_face_faults(case: Any) -> None:
    def spoil(fault: str, face_reason: str, sheet: np.ndarray) -> None:
        made = case(fault, _expected(face_reason=face_reason))
        made.write()
        write_bytes(made.write_face().with_suffix(".png"), encode_png(sheet))

    photo = case("sound", _expected())
    photo.write()
    photo.write_face()
    sheet = make_sheet(photo.photo)
    side = sheet.shape[0] // 2
    spoil("sheet of the wrong size", "sheet_wrong_size", sheet[: side * 3 // 2, : side * 3 // 2])
    other = sheet.copy()
    other[:side, side:] = np.linspace(20, 235, side).astype(np.uint8)[:, None, None]
    spoil("sheet with other values", "sheet_other_values", other)
    gray = sheet.copy()
    gray[:side, side:] = 128
    spoil("sheet all gray", "sheet_empty", gray)
    for fault, vector in (
        ("embedding of the wrong length", np.full(256, 1 / 16, np.float32)),
        ("embedding with NaN", np.full(512, np.nan, np.float32)),
    ):
        made = case(fault, _expected(identity_reason="bad_embedding"))
        made.write()
        buffer = io.BytesIO()
        np.save(buffer, vector)
        write_bytes(made.write_face().with_suffix(".npy"), buffer.getvalue())
