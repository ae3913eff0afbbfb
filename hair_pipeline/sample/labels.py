"""K-Hairstyle's side of the sample: file names and the flat label object of a rendered photo.

Belongs here: writing of that format. Does not belong here: reading it (`inputs.labels`) and drawing (`render`).
"""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np

from hair_pipeline.sample.geometry import SIZE
from hair_pipeline.sample.people import Person, View
from hair_pipeline.sample.render import Photo
from hair_pipeline.vocabulary import BASE_STYLE, korean

_BASE_STYLES = {
    "mens": ("parted", "mens_short", "dandy", "leaf", "soft_two_block_dandy", "shadow", "pomade", "one_block_dandy"),
    "womens_short": ("womens_short", "short_bob", "hush", "baby"),
    "bob": ("bob", "one_length", "tassel", "short_bob"),
    "medium": ("misty", "body", "build", "hush", "spin_swallow"),
    "long": ("other_layered", "loop", "body", "pleats", "air"),
}


def base_style(person: Person) -> str:
    """An English base style that goes with the person's hair."""
    hair = person.hair
    if hair.curl == "S3" and hair.length in ("medium", "long"):
        return "hippie"
    if hair.length == "mens" and hair.has_bangs:
        return ("dandy", "see_through_dandy", "mens_short")[person.seed % 3]
    choices = _BASE_STYLES[hair.length]
    return choices[person.seed % len(choices)]


def style_folder(person: Person) -> str:
    """`<NNNN>.<base style in Korean>`, e.g. `0014.보브`."""
    english = base_style(person)
    number = 1 + list(BASE_STYLE.values()).index(english)
    return f"{number:04d}.{korean('base_style', english)}"


def polygon(mask: np.ndarray, tolerance: float = 0.8) -> list[list[dict[str, float]]]:
    """Rings of pixel points around a mask (H, W) bool; holes are opened by a one-pixel slit, since rings have none."""
    area = mask.astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(1 - area, connectivity=4)
    for index in range(1, count):
        x, y, w, h, size = (int(v) for v in stats[index])
        touches = x == 0 or y == 0 or x + w == mask.shape[1] or y + h == mask.shape[0]
        if not touches and size >= 40:
            lowest = y + h - 1
            column = int(np.flatnonzero(labels[lowest] == index)[0])
            below = np.flatnonzero(labels[lowest + 1 :, column] != 0)
            area[lowest : lowest + 1 + (int(below[0]) + 1 if len(below) else SIZE), column] = 0
    contours, _ = cv2.findContours(area, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    rings = []
    for contour in sorted(contours, key=cv2.contourArea, reverse=True):
        ring = cv2.approxPolyDP(contour, tolerance, True)[:, 0]
        if len(ring) >= 3:
            rings.append([{"x": float(x), "y": float(y)} for x, y in ring])
    return rings


def _mean_rgb(person: Person) -> list[float]:
    share = {"ombre": 0.45, "two_tone": 0.35}.get(person.hair.color, 0.2)
    mixed = np.array(person.hair.rgb) * (1 - share) + np.array(person.hair.rgb_tip) * share
    return [round(float(v), 2) for v in mixed]


def make_label(person: Person, view: View, photo: Photo, file_name: str, folder: str) -> dict[str, Any]:
    """The label of one photo, as the release has it (some values as strings, some sizes missing).

    Args:
        file_name: the image's base name. folder: posix path of its folder, relative to the set's root.
    """
    hair = person.hair
    rng = np.random.default_rng([view.seed, 51])
    natural = {"straight": "straight", "wavy": "wavy", "curly": "curly"}[hair.curl_class]
    ring = [{"x": round(float(x), 1), "y": round(float(y), 1)} for x, y in photo.blur] if photo.blur is not None else []
    rgb = _mean_rgb(person)
    label: dict[str, Any] = {
        "id": file_name.rsplit(".", 1)[0],
        "source": person.source,
        "filename": file_name,
        "path": folder,
        "width": SIZE,
        "height": SIZE,
        "front": view.front,
        "horizontal": view.horizontal if rng.random() < 0.7 else str(view.horizontal),
        "vertical": korean("vertical", "high" if view.pitch > 4.5 else "low" if view.pitch < -1.5 else "mid"),
        "sex": korean("sex", "female" if person.female else "male"),
        "age": person.age if rng.random() < 0.7 else str(person.age),
        "basestyle": korean("base_style", base_style(person)),
        "basestyle-type": korean("base_style_type", "long" if hair.length in ("medium", "long") else "short"),
        "length": korean("length", hair.length),
        "curl": korean("curl", hair.curl),
        "bang": korean("bangs", hair.bangs),
        "loss": korean("hair_loss", "none"),
        "side": korean("side", "two_block" if hair.length == "mens" else "none"),
        "partition": korean("parting", hair.parting),
        "color": korean("color", hair.color),
        "rgb": rgb if rng.random() < 0.5 else json.dumps(rgb),
        "exceptional": korean("exceptional", "very_curly" if hair.curl == "S3" else "none"),
        "hair-width": korean("hair_width", hair.width),
        "natural-curl": korean("natural_curl", natural),
        "damage": korean("damage", ("virgin", "healthy", "healthy", "damaged")[person.seed % 4]),
        "before-after": "none",
        "polygon1": json.dumps(polygon(photo.hair)),
        "polygon2": json.dumps([ring] if ring else []),
    }
    label |= _other_keys(person, view)
    if rng.random() < 0.08:
        label.pop("width")
        label.pop("height")
    return label


def _other_keys(person: Person, view: View) -> dict[str, Any]:
    """Some of the release's many further keys, which nothing reads."""
    return {
        "collector": f"team-{person.seed % 5 + 1}",
        "collect-date": f"2020-{person.seed % 3 + 9:02d}-{person.seed % 27 + 1:02d}",
        "device": ("Canon EOS 200D", "SM-G977N", "iPhone11,8")[person.seed % 3],
        "exif-iso": 100 * (1 + view.seed % 8),
        "exif-fnumber": "nan",
        "exif-exposure": "1/60",
        "exif-focal-length": 35.0,
        "exif-orientation": 1,
        "face-shape": "none",
        "skin-tone": "none",
        "face-visible": abs(view.yaw) < 90,
        "dyed": person.hair.color not in ("black", "natural_brown"),
        "perm": person.hair.curl_class != "straight",
        "rating-1": person.seed % 5 + 1,
        "rating-2": str(view.seed % 5 + 1),
        "rating-3": "",
        "season": "none",
        "inspector": "nan",
        "inspected": True,
        "version": "1.0",
        "structure-left": "none",
        "structure-right": "none",
        "structure-side-l": "none",
        "structure-side-r": "none",
        "ears-covered": None,
        "comment": "",
    }
