"""The room behind a person and the weave of their clothes.

Belongs here: backgrounds and cloth colour. Does not belong here: the light on cloth (`skin.light_cloth`).
"""

from __future__ import annotations

import cv2
import numpy as np

from hair_pipeline.sample.geometry import SIZE
from hair_pipeline.sample.people import Person, View
from hair_pipeline.sample.skin import linear


def paint_room(person: Person, view: View) -> np.ndarray:
    """A blurred indoor background, linear float32 (512, 512, 3); the room is the person's, its angle the view's."""
    room = np.random.default_rng([person.seed, 31])
    side = SIZE // 2
    wall, accent = np.array(person.wall), np.array(person.accent)
    canvas = np.empty((side, side, 3), np.float32)
    canvas[:] = wall
    shift = int(view.yaw / 360 * side * 3)
    floor = int(side * room.uniform(0.78, 0.98))
    canvas[floor:] = wall * 0.72
    for _ in range(int(room.integers(2, 5))):
        kind = room.integers(4)
        x = int((room.uniform(0, 3) * side + shift) % (3 * side)) - side
        width, top, height = (
            int(side * room.uniform(0.15, 0.5)),
            int(side * room.uniform(-0.1, 0.4)),
            room.uniform(0.3, 0.9),
        )
        bottom = min(int(top + side * height), floor)
        color = accent * room.uniform(0.6, 1.1)
        if kind == 0:  # window
            cv2.rectangle(canvas, (x - 4, top - 4), (x + width + 4, bottom + 4), (wall * 0.9).tolist(), -1)
            cv2.rectangle(canvas, (x, top), (x + width, bottom), (236.0, 241.0, 246.0), -1)
            cv2.line(canvas, (x + width // 2, top), (x + width // 2, bottom), (wall * 0.85).tolist(), 3)
        elif kind == 1:  # door
            cv2.rectangle(canvas, (x, top), (x + width, side), color.tolist(), -1)
            cv2.rectangle(canvas, (x + width // 6, top + 12), (x + width * 5 // 6, side), (color * 0.9).tolist(), 2)
        elif kind == 2:  # picture or mirror
            cv2.rectangle(canvas, (x, top + 20), (x + width, top + 20 + width), (color * 0.5).tolist(), 3)
            cv2.rectangle(canvas, (x + 3, top + 23), (x + width - 3, top + 17 + width), (wall * 1.08).tolist(), -1)
        else:  # shelf
            for level in range(top, bottom, 34):
                cv2.rectangle(canvas, (x, level), (x + width, level + 4), (color * 0.8).tolist(), -1)
                for book in range(x + 2, x + width - 6, 9):
                    tint = np.clip(accent * room.uniform(0.5, 1.3) + room.normal(0, 20, 3), 20, 245)
                    cv2.rectangle(
                        canvas, (book, level - int(room.integers(10, 24))), (book + 6, level), tint.tolist(), -1
                    )
    blurred = cv2.GaussianBlur(canvas, (0, 0), float(room.uniform(1.6, 4.0)))
    canvas = linear(np.clip(blurred, 0, 255))
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    lit = 1 + 0.2 * (x * view.light[0] - y * view.light[1]) - 0.12 * (x * x + y * y)
    canvas = np.clip(canvas * lit[..., None] * np.float32(0.92), 0, 1)
    return cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


def cloth_cover(person: Person, point: np.ndarray) -> np.ndarray:
    """How far a surface point (h, w, 3) is under cloth, 0-1: below the neckline."""
    x, y, z = (point[..., i] for i in range(3))
    forward = np.clip((z + 2) / 8, 0, 1)
    line = -14.3 - 3.2 * forward * np.exp(-((x / 7) ** 2))
    if person.cloth_kind == "v_neck":
        line = line - 7.0 * forward * np.clip(1 - np.abs(x) / 6.5, 0, 1)
    elif person.cloth_kind == "shirt":
        line = line + 1.2 - 5.0 * forward * np.clip(1 - np.abs(x) / 3.5, 0, 1)
    return np.clip((line - y) / 0.16 + 0.5, 0, 1)


def cloth_color(person: Person, point: np.ndarray) -> np.ndarray:
    """Linear albedo of the cloth at surface points (h, w, 3)."""
    x, y, z = (point[..., i] for i in range(3))
    first, second = linear(person.cloth), linear(person.cloth_second)
    folds = 1 + 0.05 * np.sin(x * 0.42 + np.sin(y * 0.31 + x * 0.2) * 1.7) + 0.04 * np.sin(0.5 * y - np.abs(x) * 0.55)
    if person.cloth_kind == "stripes":
        weight = np.clip(np.sin(y * 2.4) * 6, 0, 1)[..., None]
        color = first * (1 - weight) + second * weight
    elif person.cloth_kind == "shirt":
        placket = (np.abs(np.abs(x) - 1.5) < 0.09) & (z > 0)
        color = np.where(placket[..., None], first * 0.6, first)
    else:
        color = np.broadcast_to(first, point.shape)
    return color * folds[..., None].astype(np.float32)
