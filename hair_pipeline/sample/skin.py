"""The colour of a rendered face, and the shading of skin and clothes under a light.

Belongs here: painting eyes, brows, nostrils and lips into a chart of the face, and lighting surfaces. Does not belong
here: shape (`geometry`) and hair (`strands`). Colours inside are linear light in [0, 1].
"""

from __future__ import annotations

import cv2
import numpy as np

from hair_pipeline.sample.geometry import HEIGHT_ORIGIN, HEIGHT_SCALE, Shape, features
from hair_pipeline.sample.vectors import dot

CHART_SCALE = 24.0
"""Pixels per cm of the face chart, a front projection of 18 x 26 cm."""
_WIDTH, _HEIGHT = int(18 * CHART_SCALE), int(26 * CHART_SCALE)


def linear(rgb: object) -> np.ndarray:
    """sRGB 0-255 to linear light 0-1 (gamma 2, which is near enough and cheap to invert)."""
    return (np.asarray(rgb, np.float32) / 255) ** 2


class _Chart:
    """A canvas in cm with soft-edged filled shapes."""

    def __init__(self, color: np.ndarray) -> None:
        self.pixels = np.empty((_HEIGHT, _WIDTH, 3), np.float32)
        self.pixels[:] = color

    def place(self, points: np.ndarray) -> np.ndarray:
        return (points - HEIGHT_ORIGIN) * (CHART_SCALE, -CHART_SCALE)

    def region(self, points: np.ndarray) -> tuple[slice, slice]:
        """Rows and columns of the points' bounding box."""
        placed = self.place(points)
        low = np.clip(placed.min(0), 0, (_WIDTH, _HEIGHT)).astype(int)
        high = np.clip(placed.max(0) + 1, 0, (_WIDTH, _HEIGHT)).astype(int)
        return slice(low[1], high[1]), slice(low[0], high[0])

    def fill(self, points: np.ndarray, color: np.ndarray, opacity: float, soft: float = 0.03) -> None:
        """Blend `color` inside the polygon (n, 2) in cm; its border is `soft` cm wide."""
        self._blend(points, color, opacity, soft, None)

    def line(self, points: np.ndarray, color: np.ndarray, opacity: float, width: float, soft: float = 0.03) -> None:
        """Blend `color` along the polyline (n, 2) in cm, `width` cm wide."""
        self._blend(points, color, opacity, soft, width)

    def _blend(self, points: np.ndarray, color: np.ndarray, opacity: float, soft: float, width: float | None) -> None:
        placed = self.place(points)
        sigma = soft * CHART_SCALE
        margin = int(3 * sigma + 3 + (width or 0) * CHART_SCALE)
        low = np.clip(np.floor(placed.min(0)).astype(int) - margin, 0, (_WIDTH, _HEIGHT))
        high = np.clip(np.ceil(placed.max(0)).astype(int) + margin, 0, (_WIDTH, _HEIGHT))
        if (high - low).min() < 2:
            return
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        fixed = np.round((placed - low) * 16).astype(np.int32)
        if width is None:
            cv2.fillPoly(mask, [fixed], 255, cv2.LINE_AA, 4)
        else:
            cv2.polylines(mask, [fixed], False, 255, max(1, round(width * CHART_SCALE)), cv2.LINE_AA, 4)
        if sigma > 0.4:
            mask = cv2.GaussianBlur(mask, (0, 0), sigma)
        alpha = mask[..., None] * np.float32(opacity / 255)
        region = self.pixels[low[1] : high[1], low[0] : high[0]]
        region += (color - region) * alpha


def _ellipse(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 40)
    return np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], 1)


def skin_color(identity: dict[str, float]) -> np.ndarray:
    """Linear RGB of the skin."""
    tones = np.array([(106, 70, 52), (152, 106, 80), (196, 148, 118), (222, 178, 150), (232, 198, 176)], float)
    at = (identity["skin_tone"] + 1) * 2
    color = np.array([np.interp(at, np.arange(5), tones[:, c]) for c in range(3)])
    warmth = identity["skin_warmth"]
    color = color * (1 + 0.01 * warmth, 1 + 0.03 * warmth, 1 - 0.08 * warmth)
    return linear(np.clip(color, 0, 255))


def _lids(half: float, rise: float, drop: float) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower lid curves of an eye around the origin, inner corner at -half."""
    t = np.linspace(-1, 1, 21)
    upper = np.stack([t * half, rise * (1 - np.abs(t) ** 2.2) * (1 + 0.12 * t)], 1)
    lower = np.stack([t * half, -drop * (1 - np.abs(t) ** 2.0) * (1 + 0.1 * t)], 1)
    return upper, lower


def _paint_eye(chart: _Chart, identity: dict[str, float], place: dict[str, float], skin: np.ndarray, side: int) -> None:
    half = place["eye_half"]
    upper, lower = _lids(half, 0.40 * half + 0.1, 0.25 * half)
    angle = np.radians(4 + 8 * identity["eye_tilt"])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = np.array([place["eye_x"], place["eye_y"]])

    def put(points: np.ndarray) -> np.ndarray:
        return (points @ turn + centre) * (side, 1)

    almond = np.concatenate([upper, lower[::-1]])
    chart.fill(put(almond * (1.35, 2.3) + (0, 0.15)), skin * (0.62, 0.5, 0.46), 0.35, 0.3)
    chart.fill(put(almond), linear((206, 197, 191)), 1.0, 0.03)
    dark, light = linear((46, 28, 20)), linear((92, 116, 122))
    mix = np.clip((identity["eye_color"] + 1) / 2, 0, 1) ** 1.5
    iris = dark + (light - dark) * mix
    radius = 0.45 * half
    near = chart.region(put(almond * 3))
    before = chart.pixels[near].copy()
    chart.fill(put(_ellipse(0, 0.06, radius, radius)), iris * 0.35, 1.0, 0.03)
    chart.fill(put(_ellipse(0, 0.06, radius * 0.84, radius * 0.84)), iris, 1.0, 0.05)
    chart.fill(put(_ellipse(0, -0.1, radius * 0.5, radius * 0.35)), iris * 1.8, 0.5, 0.08)
    chart.fill(put(_ellipse(0, 0.06, radius * 0.42, radius * 0.42)), linear((8, 8, 8)), 1.0, 0.03)
    inside = np.zeros((_HEIGHT, _WIDTH), np.uint8)
    cv2.fillPoly(inside, [np.round(chart.place(put(almond)) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    keep = inside[near][..., None] > 127
    chart.pixels[near] = np.where(keep, chart.pixels[near], before)
    shade = np.concatenate([upper, (upper * (1, 0.45))[::-1]])
    chart.fill(put(shade), linear((40, 28, 24)), 0.45, 0.05)
    chart.line(put(upper), linear((18, 12, 10)), 0.95, 0.1, 0.025)
    wing = np.array([[half * 0.8, upper[-3, 1]], [half * 1.12, 0.14]])
    chart.line(put(wing), linear((18, 12, 10)), 0.7, 0.07, 0.03)
    chart.line(put(lower), skin * (0.45, 0.32, 0.3), 0.55, 0.07, 0.04)
    chart.line(put(upper * (1.04, 1.0) + (0.02, 0.3)), skin * (0.42, 0.3, 0.26), 0.6, 0.07, 0.05)  # crease
    chart.fill(put(_ellipse(-half * 0.93, -0.02, 0.13, 0.1)), linear((190, 110, 100)), 0.6, 0.04)
    glint = put(_ellipse(0, 0, 0.09, 0.09)) + np.array([0.16, 0.2])
    chart.fill(glint, np.ones(3, np.float32), 0.95, 0.03)


def _paint_brow(
    chart: _Chart, identity: dict[str, float], place: dict[str, float], side: int, rng: np.random.Generator
) -> None:
    weight = (identity["brow_weight"] + 1) / 2
    t = np.linspace(0, 1, 24)
    x = place["eye_x"] - 1.75 + 3.9 * t
    y = place["brow_y"] + 0.5 * np.sin(np.pi * t**1.4) - 0.22 * t + 0.05 + 0.12 * identity["eye_tilt"] * t
    thick = (0.13 + 0.3 * weight) * np.clip(1.15 - t**2.2, 0, 1) * np.clip(t * 6 + 0.4, 0, 1)
    dark = linear((118, 92, 74)) + (linear((24, 18, 16)) - linear((118, 92, 74))) * weight
    outline = np.concatenate([np.stack([x, y + thick], 1), np.stack([x, y - thick], 1)[::-1]])
    chart.fill(outline * (side, 1), dark, 0.35 + 0.4 * weight, 0.1)
    count = int(50 + 60 * weight)
    at = rng.uniform(0, 1, count)
    base_x, base_y, reach = np.interp(at, t, x), np.interp(at, t, y), np.interp(at, t, thick)
    start = np.stack([base_x, base_y + rng.uniform(-0.9, 0.6, count) * reach], 1)
    lean = np.stack([0.25 + 0.25 * at, 0.32 - 0.4 * at], 1) * rng.uniform(0.6, 1.1, (count, 1))
    for begin, end in zip(start, start + lean, strict=True):
        chart.line(np.stack([begin, end]) * (side, 1), dark * 0.8, 0.55, 0.03, 0.0)


def _paint_mouth(chart: _Chart, identity: dict[str, float], place: dict[str, float], skin: np.ndarray) -> None:
    width, lip, y = place["mouth_half"], place["lip"], place["mouth_y"]
    red = (identity["lip_color"] + 1) / 2
    color = skin * (0.86, 0.55, 0.52) * (1 - red) + linear((178, 42, 52)) * (0.35 + 0.65 * skin.mean()) * 1.25 * red
    t = np.linspace(-1, 1, 41)
    bow = 0.62 * lip * (1 - np.abs(t) ** 1.8) - 0.16 * lip * np.exp(-((t / 0.14) ** 2))
    low = -0.85 * lip * (1 - np.abs(t) ** 2.3)
    middle = 0.05 * np.cos(3 * np.pi * t) * (1 - np.abs(t)) + 0.2 * t**2 - 0.08
    line = np.stack([t * width, y + middle], 1)
    corner = 0.14 * np.abs(t) ** 3
    chart.fill(np.concatenate([np.stack([t * width, y + bow + corner], 1), line[::-1]]), color * 0.72, 0.9, 0.06)
    chart.fill(np.concatenate([line, np.stack([t * width * 0.96, y + low + corner], 1)[::-1]]), color, 0.9, 0.07)
    chart.fill(_ellipse(0, y - 0.42 * lip, width * 0.42, 0.16 * lip), color * 1.5 + 0.05, 0.35, 0.12)
    chart.line(line * (1.03, 1), color * (0.2, 0.12, 0.12), 0.85, 0.08, 0.035)
    for side in (-1, 1):
        chart.fill(_ellipse(side * width * 1.03, y, 0.18, 0.15), skin * (0.5, 0.34, 0.3), 0.5, 0.1)
    chart.fill(_ellipse(0, y - 1.35 * lip, 1.3, 0.28), skin * (0.72, 0.6, 0.58), 0.4, 0.25)


def paint_face(identity: dict[str, float], shape: Shape, female: bool, seed: int) -> np.ndarray:
    """The face chart: linear albedo float32 (624, 432, 3), a front projection of x -9..9, y 13..-13 cm."""
    rng = np.random.default_rng([seed, 77])
    place = features(identity)
    skin = skin_color(identity)
    chart = _Chart(skin)
    blush = (identity["cheek_color"] + 1) / 2
    rosy = skin * (1.02, 0.6, 0.62)
    for side in (-1, 1):
        chart.fill(_ellipse(side * 4.5, -3.3, 1.9, 1.4), rosy, 0.1 + 0.75 * blush, 0.8)
        chart.fill(_ellipse(side * place["eye_x"], -1.1, 1.4, 0.45), skin * (0.8, 0.72, 0.74), 0.35, 0.35)
    chart.fill(_ellipse(0, place["nose_y"] + 0.4, 1.0, 0.9), rosy, 0.35, 0.5)
    if not female:
        jaw = _ellipse(0, place["mouth_y"] - 1.4, 5.0, 3.4)
        chart.fill(jaw, skin * (0.8, 0.82, 0.86), 0.45, 0.7)
    mottle = cv2.resize(
        rng.standard_normal((65, 45)).astype(np.float32), (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC
    )
    pores = cv2.GaussianBlur(rng.standard_normal((_HEIGHT, _WIDTH)).astype(np.float32), (0, 0), 0.9)
    chart.pixels *= (1 + 0.025 * mottle + 0.09 * pores)[..., None]
    half = place["nose_half"]
    for side in (-1, 1):
        nostril = _ellipse(side * half * 0.44, place["nose_y"] - 0.42, half * 0.24, 0.17)
        chart.fill(nostril, skin * (0.14, 0.07, 0.06), 0.9, 0.08)
        wing = np.array([[half * 0.95, 0.45], [half * 1.08, 0.0], [half * 0.92, -0.35], [half * 0.7, -0.42]])
        chart.line((wing + np.array([0, place["nose_y"]])) * (side, 1), skin * (0.5, 0.34, 0.3), 0.5, 0.1, 0.1)
        _paint_eye(chart, identity, place, skin, side)
        _paint_brow(chart, identity, place, side, rng)
    _paint_mouth(chart, identity, place, skin)
    cavity = shape.relief - cv2.GaussianBlur(shape.relief, (0, 0), 0.8 * HEIGHT_SCALE)
    cavity = cv2.resize(cavity, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_LINEAR)
    return chart.pixels * np.clip(1 + 0.5 * cavity, 0.45, 1.15)[..., None]


def look_up(chart: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Albedo of surface points (h, w, 3) by front projection; behind the ears it is the cheek's colour."""
    map_x = (point[..., 0] - np.float32(HEIGHT_ORIGIN[0])) * np.float32(CHART_SCALE)
    map_y = (np.float32(HEIGHT_ORIGIN[1]) - point[..., 1]) * np.float32(CHART_SCALE)
    return cv2.remap(chart, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def light_skin(
    albedo: np.ndarray, normal: np.ndarray, light: np.ndarray, ambient: np.ndarray, key: np.ndarray
) -> np.ndarray:
    """Skin under one light and a dome: red light scatters further round the edge than blue.

    Args:
        albedo, normal: (h, w, 3), linear albedo and camera-frame unit normals.
        light: (3,) direction towards the light. ambient, key: (3,) linear colours.
    """
    lambert = dot(normal, light)
    wrap = np.array([0.42, 0.26, 0.2], np.float32)
    direct = np.clip((lambert[..., None] + wrap) / (1 + wrap), 0, 1)
    direct *= np.sqrt(np.sqrt(direct))
    dome = 0.62 + 0.38 * normal[..., 1:2]
    half = light + np.array([0, 0, 1], np.float32)
    half /= np.linalg.norm(half)
    glint = np.clip(dot(normal, half), 0, 1)
    glint *= glint
    glint *= glint
    glint *= glint
    glint = glint * 0.045 + glint * glint * glint * 0.05
    rim = np.clip(1 - np.abs(normal[..., 2:3]), 0, 1) ** 3
    return albedo * (ambient * dome * (1 - 0.35 * rim) + key * direct) + glint[..., None] * key


def light_cloth(
    albedo: np.ndarray, normal: np.ndarray, light: np.ndarray, ambient: np.ndarray, key: np.ndarray
) -> np.ndarray:
    """Matte cloth under the same light."""
    direct = np.clip(dot(normal, light)[..., None] * 0.85 + 0.15, 0, 1)
    return albedo * (ambient * (0.6 + 0.4 * normal[..., 1:2]) + key * direct)
