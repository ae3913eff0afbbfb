"""The shape of a rendered person: head, ears, neck and shoulders as a signed field, and the depth a camera sees.

Belongs here: the slice tables in centimetres, the field, camera poses and ray marching. Does not belong here:
colour (`skin`) and hair (`strands`), which only ask for the surface.

Units are centimetres in the head's frame: x to the image's right when the head faces the camera, y up, z towards
the viewer; the origin lies between the ears at the height of the eyes.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from hair_pipeline.sample.vectors import turn, unit

SIZE = 512
STEPS = 2560
"""Entries of a slice table."""
TOP, BOTTOM = 13.0, -51.0
"""Height of the first and the last slice, cm."""

# y, half width, front z, back z
_HEAD = np.array(
    [
        (12.30, 0.05, -0.6, -1.6),
        (12.05, 2.2, 1.6, -3.6),
        (11.4, 3.9, 3.8, -5.7),
        (10.2, 5.4, 5.9, -7.7),
        (8.4, 6.6, 7.5, -9.2),
        (6.0, 7.3, 8.5, -10.1),
        (3.2, 7.5, 9.0, -10.3),
        (0.4, 7.3, 8.8, -9.9),
        (-2.2, 7.0, 8.7, -8.6),
        (-4.6, 6.55, 8.6, -6.2),
        (-6.6, 5.9, 8.55, -3.0),
        (-8.4, 5.05, 8.5, -0.4),
        (-9.8, 4.1, 8.3, 1.8),
        (-10.8, 3.1, 7.9, 3.4),
        (-11.5, 1.9, 7.2, 4.7),
        (-11.8, 0.05, 6.2, 5.6),
    ]
)
_BODY = np.array(
    [
        (-3.0, 0.05, -4.4, -4.5),
        (-3.8, 3.4, -0.5, -6.5),
        (-6.0, 5.0, 1.2, -7.6),
        (-10.0, 5.3, 2.2, -7.6),
        (-12.2, 5.5, 2.8, -7.6),
        (-13.8, 6.3, 3.3, -8.0),
        (-15.2, 8.6, 3.8, -8.6),
        (-16.3, 12.2, 4.3, -9.2),
        (-17.3, 15.8, 4.9, -9.8),
        (-18.8, 18.6, 5.8, -10.4),
        (-21.5, 20.4, 7.4, -11.0),
        (-27.0, 21.2, 9.0, -11.4),
        (-51.0, 21.0, 9.2, -11.2),
    ]
)
HEIGHT_SCALE = 12.0
"""Pixels per cm of the map of the face's relief."""
HEIGHT_ORIGIN = (-9.0, 13.0)
"""x and y in cm of that map's first pixel."""


def _slices(table: np.ndarray) -> np.ndarray:
    """Smoothly interpolated slices: float32 (STEPS, 3) of half width, centre z, half depth."""
    y = np.linspace(TOP, BOTTOM, STEPS)
    knots = table[::-1]
    reach = int(0.8 * STEPS / (TOP - BOTTOM))
    kernel = np.hanning(2 * reach + 3)[1:-1]
    kernel /= kernel.sum()
    columns = [np.interp(y, knots[:, 0], knots[:, c]) for c in (1, 2, 3)]
    width, front, back = (np.convolve(np.pad(c, reach, mode="edge"), kernel, "valid") for c in columns)
    width = np.maximum(width, 0.05)
    return np.stack([width, (front + back) / 2, np.maximum((front - back) / 2, 0.05)], 1).astype(np.float32)


@dataclass(frozen=True)
class Shape:
    """A person's surface: slice tables of head and body, relief of the face, ears."""

    head: np.ndarray  # (STEPS, 3)
    body: np.ndarray  # (STEPS, 3)
    ends: tuple[float, float]  # top and bottom of the head, y
    relief: np.ndarray  # float32 map, cm forward
    ear: tuple[float, float, float]  # centre x, y, z


def _gauss(x: np.ndarray, y: np.ndarray, cx: float, cy: float, sx: float, sy: float) -> np.ndarray:
    return np.exp(-0.5 * (((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2))


def features(identity: dict[str, float]) -> dict[str, float]:
    """Positions (cm) of the facial features for an identity given as name -> value in [-1, 1]."""
    length = 1 + 0.055 * identity["face_length"]
    mouth = -6.75 * length
    return {
        "length": length,
        "eye_x": 3.15 + 0.38 * identity["eye_spacing"],
        "eye_y": 0.2,
        "eye_half": 1.5 + 0.24 * identity["eye_size"],
        "brow_y": 2.35 + 0.4 * identity["brow_height"],
        "nose_y": -4.05 - 0.75 * identity["nose_length"],
        "nose_half": 1.65 + 0.42 * identity["nose_width"],
        "mouth_y": mouth,
        "mouth_half": 2.45 + 0.5 * identity["mouth_width"],
        "lip": 1 + 0.5 * identity["lip_fullness"],
    }


def build_shape(identity: dict[str, float], female: float) -> Shape:
    """The surface of a person; `female` in [0, 1] softens brow and jaw and narrows neck and shoulders."""
    place = features(identity)
    head, body = _HEAD.copy(), _BODY.copy()
    low = np.clip((-head[:, 0] - 1) / 8, 0, 1)
    head[:, 1] *= 1 + 0.075 * identity["face_width"]
    head[:, 1] *= 1 + low * (0.13 * identity["jaw_width"] + 0.03 - 0.06 * female)
    chin = np.exp(-(((head[:, 0] + 10.9) / 1.1) ** 2))
    head[:, 1] *= 1 + chin * 0.28 * identity["chin_shape"]
    head[head[:, 0] < 0, 0] *= place["length"]
    shoulders = 1 - 0.13 * female + 0.02
    body[body[:, 0] < -14.0, 1] *= shoulders
    body[body[:, 0] >= -14.0, 1] *= 1.03 - 0.13 * female
    x, y = np.meshgrid(
        np.arange(int(18 * HEIGHT_SCALE)) / HEIGHT_SCALE + HEIGHT_ORIGIN[0],
        HEIGHT_ORIGIN[1] - np.arange(int(26 * HEIGHT_SCALE)) / HEIGHT_SCALE,
    )
    ax = np.abs(x)
    nose_y, half, mouth = place["nose_y"], place["nose_half"], place["mouth_y"]
    along = np.clip((1.1 - y) / (1.1 - nose_y), 0, 1)
    ridge = along**1.25 * np.exp(-(((y - nose_y).clip(None, 0) / 0.55) ** 2))
    relief = 1.65 * ridge * np.exp(-((ax / (0.62 + 0.55 * along * half / 1.65)) ** 2) * 0.9)
    relief += 0.75 * _gauss(ax, y, half * 0.72, nose_y + 0.15, 0.45, 0.5)  # wings
    relief += 0.35 * _gauss(x, y, 0, nose_y + 0.3, 0.7, 0.6)  # tip
    relief -= 0.75 * _gauss(ax, y, place["eye_x"] - 0.2, 0.5, 1.5, 0.95)  # sockets
    relief += 0.38 * _gauss(ax, y, place["eye_x"], 0.15, 0.95, 0.6)  # eyeballs
    relief += (0.42 - 0.25 * female) * _gauss(ax, y, 2.6, place["brow_y"] - 0.1, 2.0, 0.6)  # brow ridge
    relief += 0.32 * _gauss(ax, y, 4.6, -2.8, 1.7, 1.5)  # cheekbones
    relief -= 0.16 * _gauss(ax, y, 4.6, -6.6, 1.3, 1.8)
    lip, width = place["lip"], place["mouth_half"]
    across = np.exp(-((ax / width) ** 4))
    relief += 0.42 * across * np.exp(-(((y - mouth - 0.45 * lip) / (0.42 * lip)) ** 2))
    relief += 0.5 * across * np.exp(-(((y - mouth + 0.55 * lip) / (0.5 * lip)) ** 2))
    relief -= 0.22 * across * np.exp(-(((y - mouth) / 0.14) ** 2))
    relief -= 0.22 * _gauss(x, y, 0, mouth - 1.45 * lip - 0.2, 1.5, 0.4)
    relief -= 0.14 * _gauss(x, y, 0, (mouth + nose_y) / 2 + 0.1, 0.3, 0.6)  # philtrum
    relief += 0.35 * _gauss(x, y, 0, -10.2 * place["length"], 1.5, 0.9)  # chin
    relief += 0.18 * _gauss(x, y, 0, 5.0, 4.5, 2.2)  # forehead
    ear_x = float(np.interp(-0.8, _HEAD[::-1, 0], head[::-1, 1]))
    ends = (float(head[0, 0]), float(head[-1, 0]))
    return Shape(_slices(head), _slices(body), ends, relief.astype(np.float32), (ear_x + 0.25, -0.9, -1.3))


def _stack(table: np.ndarray, x: np.ndarray, row: np.ndarray, z: np.ndarray, power: float) -> np.ndarray:
    """Approximate distance (cm) to a stack of superelliptic slices."""
    at = table.take(row, axis=0)  # four times as fast as table[row]
    width, depth = at[..., 0], at[..., 2]
    px, pz = np.abs(x) / width, np.abs(z - at[..., 1]) / depth
    if power == 2.0:
        radius = np.sqrt(px * px + pz * pz)
    else:
        radius = (px**power + pz**power) ** np.float32(1 / power)
    return (radius - 1) * np.minimum(width, depth)


def _row(y: np.ndarray) -> np.ndarray:
    scale = np.float32((STEPS - 1) / (TOP - BOTTOM))
    return np.clip((np.float32(TOP) - y) * scale, 0, STEPS - 1).astype(np.int32)


def head_field(shape: Shape, x: np.ndarray, y: np.ndarray, z: np.ndarray, *, plain: bool = False) -> np.ndarray:
    """Approximate signed distance (cm) to the head; `plain` leaves out relief and ears. Arrays of one shape."""
    row = _row(y)
    cap = np.maximum(y - np.float32(shape.ends[0]), np.float32(shape.ends[1]) - y)
    if plain:
        return np.maximum(_stack(shape.head, x, row, z, 2.0), cap)
    map_x = (x - np.float32(HEIGHT_ORIGIN[0])) * np.float32(HEIGHT_SCALE)
    map_y = (np.float32(HEIGHT_ORIGIN[1]) - y) * np.float32(HEIGHT_SCALE)
    relief = cv2.remap(shape.relief, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    relief = relief.reshape(z.shape) * np.clip((z - 1) * np.float32(0.25), 0, 1)
    head = np.maximum(_stack(shape.head, x, row, z - relief, 2.0), cap)
    ex, ey, ez = shape.ear
    dx = (np.abs(x) - ex + 0.25 * (z - ez)) / np.float32(0.62)
    dy, dz = (y - ey) / np.float32(3.1), (z - ez + 0.22 * (y - ey)) / np.float32(1.75)
    ear = (np.sqrt(dx * dx + dy * dy + dz * dz) - 1) * np.float32(0.6)
    return np.minimum(head, ear)


def body_field(shape: Shape, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Approximate signed distance (cm) to neck, shoulders and chest."""
    return _stack(shape.body, x, _row(y), z, 2.3)


@dataclass(frozen=True)
class Camera:
    """An orthographic view of the head: rotation (degrees), scale (px per cm) and where the origin lands (px)."""

    yaw: float
    pitch: float
    roll: float
    scale: float
    origin: tuple[float, float]

    @property
    def rotation(self) -> np.ndarray:
        """(3, 3) from the head's frame to the camera's; positive yaw turns the nose to the image's right."""
        yaw, pitch, roll = np.radians([self.yaw, self.pitch, self.roll])
        yawed = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        nod = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
        tilt = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
        return (tilt @ nod @ yawed).astype(np.float32)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (..., 2) and depth towards the viewer in cm (...) of points (..., 3) in the head's frame."""
        turned = turn(points, self.rotation)
        pixels = turned[..., :2] * np.array([self.scale, -self.scale], np.float32) + np.array(self.origin, np.float32)
        return pixels, turned[..., 2]


@dataclass(frozen=True)
class Surface:
    """What the camera sees of one part, on a grid of `step` pixels over the rectangle (x0, y0, x1, y1)."""

    step: int
    box: tuple[int, int, int, int]
    distance: np.ndarray  # (h, w) cm, least distance of the ray to the surface; <= 0 is a hit
    point: np.ndarray  # (h, w, 3) cm, head's frame
    normal: np.ndarray  # (h, w, 3) unit, camera's frame

    def full(self, array: np.ndarray) -> np.ndarray:
        """Bilinear enlargement of an array (h, w[, c]) of this grid to pixels of the box."""
        return self.enlarge(array, self.step)

    def enlarge(self, array: np.ndarray, factor: int) -> np.ndarray:
        """Bilinear enlargement of an array (h, w[, c]) by a factor."""
        size = (array.shape[1] * factor, array.shape[0] * factor)
        return cv2.resize(np.ascontiguousarray(array), size, interpolation=cv2.INTER_LINEAR)


def march(shape: Shape, camera: Camera, part: str, box: tuple[int, int, int, int], step: int, steps: int) -> Surface:
    """Follow one ray per grid cell of `box` (sides divisible by `step`) to the part "head" or "body"."""
    field = head_field if part == "head" else body_field
    x0, y0, x1, y1 = box
    px, py = np.meshgrid(
        np.arange(x0 + (step - 1) / 2, x1, step, dtype=np.float32),
        np.arange(y0 + (step - 1) / 2, y1, step, dtype=np.float32),
    )
    grid = px.shape
    cx = ((px - camera.origin[0]) / camera.scale).ravel()
    cy = ((camera.origin[1] - py) / camera.scale).ravel()
    back = camera.rotation  # head = rotation.T @ camera
    start = cx[:, None] * back[0] + cy[:, None] * back[1]
    ray = -back[2]
    reach = np.float32(13.5 if part == "head" else 22.0)
    depth = np.full(cx.shape, reach, np.float32)
    least = np.full(cx.shape, 99, np.float32)
    for step_index in range(steps):
        x, y, z = (start[:, i] - depth * ray[i] for i in range(3))
        distance = field(shape, x, y, z)
        np.minimum(least, distance, out=least)
        advance = np.clip(distance, -1.5, 4) * np.float32(0.8)
        if step_index < steps - 6:  # past grazed edges, instead of stopping there
            advance = np.where(distance > 0, np.maximum(advance, 0.35), advance)
        depth -= advance
    hit = least < 0.08
    point = start - depth[:, None] * ray
    epsilon = np.float32(0.15)
    slope = np.stack(
        [
            field(shape, *(point[:, j] + (epsilon if i == j else 0) for j in range(3)))
            - field(shape, *(point[:, j] - (epsilon if i == j else 0) for j in range(3)))
            for i in range(3)
        ],
        1,
    )
    normal = turn(unit(slope), back)
    # an outline that does not follow the grid: blurred occupancy, turned back into centimetres
    cell = step / camera.scale
    filled = np.where(hit, 1, np.clip(0.5 - least / cell, 0, 1)).astype(np.float32).reshape(grid)
    soft = (0.5 - cv2.GaussianBlur(filled, (0, 0), 0.8)) * np.float32(2 * cell)
    return Surface(step, box, soft, point.reshape(*grid, 3), normal.reshape(*grid, 3))
