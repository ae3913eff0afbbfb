"""Drawing hair: the strands a camera sees, shaded, sorted by depth and painted as thousands of short lines.

Belongs here: projection, light on strands, line drawing. Does not belong here: the strands' shape (`grow`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from hair_pipeline.sample.geometry import SIZE, Camera
from hair_pipeline.sample.grow import CHUNK, Strands
from hair_pipeline.sample.people import Hair
from hair_pipeline.sample.skin import linear
from hair_pipeline.sample.vectors import dot, turn, unit

FINE = 2
"""Lines are drawn at this multiple of the picture's resolution and averaged down."""
NOTHING = -99.0
"""Depth where the camera sees neither head nor body."""
_SHADES, _TONES, _DEPTHS = 22, 4, 9


@dataclass(frozen=True)
class HairLayers:
    """Hair behind the body and before it: float32 (512, 512, 4), premultiplied linear RGB and coverage in [0, 1]."""

    behind: np.ndarray
    before: np.ndarray


def _shade(
    tangent: np.ndarray, position: np.ndarray, shell: np.ndarray, bright: np.ndarray, light: np.ndarray, hair: Hair
) -> tuple[np.ndarray, np.ndarray]:
    """Diffuse and shiny light on strand pieces (Kajiya and Kay 1989), each (m,)."""
    outward = position * np.array([1, 0.75, 1], np.float32)
    np.maximum(outward[:, 1], 0, out=outward[:, 1])
    outward = unit(outward)
    facing = np.clip(dot(outward, light) * 0.62 + 0.38, 0, 1)
    along = dot(tangent, light)
    diffuse = np.sqrt(np.clip(1 - along * along, 0, 1))
    half = light + np.array([0, 0, 1], np.float32)
    half /= np.linalg.norm(half)
    shifted = tangent + outward * (0.12 * (bright[:, None] - 1))
    shifted = unit(shifted)
    mirror = np.clip(1 - dot(shifted, half) ** 2, 0, 1)
    mirror = mirror * mirror * mirror
    mirror *= mirror
    mirror *= mirror
    shine = mirror * mirror * facing * shell * hair.shine
    deep = 0.42 + 0.58 * shell
    return (0.30 + 0.85 * facing * diffuse) * deep * bright, shine


def _palette(hair: Hair, ambient: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Linear colours (tones, shades, 3) drawn as sRGB 0-255; shade is diffuse light plus shine above 1."""
    root, tip = linear(hair.rgb), linear(hair.rgb_tip)
    mix = np.linspace(0, 1, _TONES)[:, None]
    albedo = (root * (1 - mix) + tip * mix)[:, None] + 0.006
    shade = np.linspace(0, 2, _SHADES)[None, :, None]
    body = albedo * np.minimum(shade, 1.25) * (0.35 * ambient + 0.75 * key) * 1.25
    gloss = np.clip(shade - 0.95, 0, None) ** 1.3 * (0.55 * albedo + 0.1) * key
    return np.clip(np.sqrt(np.clip(body + gloss, 0, 1)) * 255, 3, 250)


def draw_hair(
    bundles: list[Strands],
    hair: Hair,
    camera: Camera,
    surface_depth: np.ndarray,
    light: np.ndarray,
    ambient: np.ndarray,
    key: np.ndarray,
) -> HairLayers:
    """Paint the strands.

    Args:
        bundles: from `grow`. surface_depth: float32 (h, w) depth of head and body in cm, NOTHING where there is none,
            at any resolution. light: (3,) camera frame. ambient, key: (3,) linear colours of the light.
    """
    palette = _palette(hair, ambient, key)
    seen = [_project(bundle, camera) for bundle in bundles]
    low = [int(min(pixels[..., i].min() for pixels, _ in seen)) - 4 for i in (0, 1)]
    high = [int(max(pixels[..., i].max() for pixels, _ in seen)) + 5 for i in (0, 1)]
    x0, y0, x1, y1 = (int(np.clip(v, 0, SIZE)) for v in (*low, *high))
    canvases = [np.zeros(((y1 - y0) * FINE, (x1 - x0) * FINE, 4), np.uint8) for _ in range(2)]
    for bundle, (pixels, turned) in zip(bundles, seen, strict=True):
        _draw_bundle(canvases, bundle, hair, pixels, turned, (x0, y0), surface_depth, light, palette)
    layers = [np.zeros((SIZE, SIZE, 4), np.float32) for _ in canvases]
    for layer, canvas in zip(layers, canvases, strict=True):
        layer[y0:y1, x0:x1] = _average(canvas)
    return HairLayers(*layers)


def _project(bundle: Strands, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, k, 2) and camera-frame points (n, k, 3)."""
    turned = turn(bundle.points, camera.rotation).reshape(-1, 3)
    scale = np.array([camera.scale, -camera.scale], np.float32)
    pixels = turned[:, :2] * scale + np.array(camera.origin, np.float32)
    shape = bundle.points.shape
    return pixels.reshape(*shape[:2], 2), turned.reshape(shape)


def _average(canvas: np.ndarray) -> np.ndarray:
    """Premultiplied linear light and coverage, averaged down from sRGB lines."""
    small = cv2.resize(canvas, (canvas.shape[1] // FINE, canvas.shape[0] // FINE), interpolation=cv2.INTER_AREA)
    result = small.astype(np.float32) * np.float32(1 / 255)
    color = result[..., :3]
    color *= color
    color /= np.maximum(result[..., 3:], 1e-3)
    return result


def _draw_bundle(
    canvases: list[np.ndarray],
    bundle: Strands,
    hair: Hair,
    pixels: np.ndarray,
    turned: np.ndarray,
    corner: tuple[int, int],
    surface_depth: np.ndarray,
    light: np.ndarray,
    palette: np.ndarray,
) -> None:
    k = pixels.shape[1]
    starts = np.arange(0, k - 1, CHUNK)
    pieces = len(starts)
    middle = ((turned[:, starts] + turned[:, starts + CHUNK]) / 2).reshape(-1, 3)
    tangent = (turned[:, starts + CHUNK] - turned[:, starts]).reshape(-1, 3)
    where = ((pixels[:, starts] + pixels[:, starts + CHUNK]) / 2).reshape(-1, 2)
    side = surface_depth.shape[0]
    at = np.clip((where * np.float32(side / SIZE)).astype(np.int32), 0, side - 1)
    solid = surface_depth.ravel()[at[:, 1] * side + at[:, 0]]
    buried = cv2.erode(surface_depth, np.ones((3, 3), np.uint8)).ravel()[at[:, 1] * side + at[:, 0]]
    front = np.where(solid > NOTHING, middle[:, 2] > solid - 0.25, middle[:, 2] > -1.5)
    seen = front | (buried <= NOTHING)
    seen &= ((where > -30) & (where < SIZE + 30)).all(1)
    flat = np.flatnonzero(seen)
    strand = flat // pieces
    vectors = unit(tangent[flat])
    diffuse, shine = _shade(vectors, middle[flat], bundle.shell[strand], bundle.bright[strand], light, hair)
    if bundle.filler:
        diffuse, shine = diffuse * 0.72, shine * 0
    shade = np.clip((np.minimum(diffuse, 1.15) + shine) / 2 * (_SHADES - 1) + 0.5, 0, _SHADES - 1).astype(np.int32)
    tones = (bundle.tone[:, starts] + bundle.tone[:, starts + CHUNK]).ravel()[flat] / 2
    tone = np.clip(tones * (_TONES - 1) + 0.5, 0, _TONES - 1).astype(np.int32)
    layer = np.clip((middle[flat, 2] + 14) * (_DEPTHS / 28), 0, _DEPTHS - 1).astype(np.int32)
    code = ((front[flat] * _DEPTHS + layer) * _SHADES + shade) * _TONES + tone
    order = np.argsort(code, kind="stable")
    code, flat = code[order], flat[order]
    fixed = np.round((pixels - np.array(corner, np.float32)) * (FINE * 8)).astype(np.int32).reshape(-1, 2)
    first = (flat // pieces) * k + (flat % pieces) * CHUNK
    lines = fixed[first[:, None] + np.arange(CHUNK + 1)]
    edges = [0, *(np.flatnonzero(np.diff(code)) + 1).tolist(), len(code)]
    for begin, end in pairwise(edges):
        if begin == end:
            continue
        value = int(code[begin])
        tone_index, value = value % _TONES, value // _TONES
        shade_index, value = value % _SHADES, value // _SHADES
        color = (*palette[tone_index, shade_index].tolist(), 255)
        cv2.polylines(canvases[value // _DEPTHS], list(lines[begin:end]), False, color, bundle.thickness, cv2.LINE_8, 3)
