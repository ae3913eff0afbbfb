"""Drawing hair: the strands a camera sees, shaded, sorted by depth and painted as thousands of short lines.

Belongs here: projection, light on strands, line drawing. Does not belong here: the strands' shape (`grow`).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from hair_pipeline.sample.geometry import SIZE, Camera
from hair_pipeline.sample.grow import Strands
from hair_pipeline.sample.people import Hair
from hair_pipeline.sample.skin import linear

FINE = 2
"""Lines are drawn at this multiple of the picture's resolution and averaged down."""
_SHADES, _TONES, _DEPTHS, _CHUNK = 28, 6, 12, 3


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
    outward[:, 1] = np.where(position[:, 1] > 0, outward[:, 1], 0)
    outward /= np.linalg.norm(outward, axis=1, keepdims=True) + 1e-6
    facing = np.clip(outward @ light * 0.62 + 0.38, 0, 1)
    along = tangent @ light
    diffuse = np.sqrt(np.clip(1 - along * along, 0, 1))
    half = light + np.array([0, 0, 1], np.float32)
    half /= np.linalg.norm(half)
    shifted = tangent + outward * (0.12 * (bright[:, None] - 1))
    shifted /= np.linalg.norm(shifted, axis=1, keepdims=True) + 1e-6
    mirror = np.clip(1 - (shifted @ half) ** 2, 0, 1)
    shine = mirror**24 * facing * shell * hair.shine
    buried = 0.38 + 0.62 * shell
    return (0.30 + 0.85 * facing * diffuse) * buried * bright, shine


def _palette(hair: Hair, ambient: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Linear colours (tones, shades, 3) drawn as sRGB 0-255; shade is diffuse light plus shine above 1."""
    root, tip = linear(hair.rgb), linear(hair.rgb_tip)
    mix = np.linspace(0, 1, _TONES)[:, None]
    albedo = (root * (1 - mix) + tip * mix)[:, None]
    shade = np.linspace(0, 2, _SHADES)[None, :, None]
    body = albedo * np.minimum(shade, 1.25) * (0.35 * ambient + 0.75 * key) * 1.25
    gloss = np.clip(shade - 0.95, 0, None) ** 1.3 * (0.55 * albedo + 0.07) * key
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
        bundles: from `grow`. surface_depth: float32 (h, w) depth of head and body in cm, -99 where there is none,
            at any resolution. light: (3,) camera frame. ambient, key: (3,) linear colours of the light.
    """
    canvases = [np.zeros((SIZE * FINE, SIZE * FINE, 4), np.uint8) for _ in range(2)]
    palette = _palette(hair, ambient, key)
    for bundle in bundles:
        _draw_bundle(canvases, bundle, hair, camera, surface_depth, light, palette)
    return HairLayers(*(_average(canvas) for canvas in canvases))


def _average(canvas: np.ndarray) -> np.ndarray:
    small = cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    alpha = small[..., 3:]
    color = small[..., :3] / np.maximum(alpha, 1e-3)
    return np.concatenate([color * color * alpha, alpha], 2)


def _draw_bundle(
    canvases: list[np.ndarray],
    bundle: Strands,
    hair: Hair,
    camera: Camera,
    surface_depth: np.ndarray,
    light: np.ndarray,
    palette: np.ndarray,
) -> None:
    n, k = bundle.points.shape[:2]
    turned = bundle.points.reshape(-1, 3) @ camera.rotation.T
    scale = np.array([camera.scale, -camera.scale], np.float32)
    pixels = (turned[:, :2] * scale + np.float32(camera.origin)).reshape(n, k, 2)
    turned = turned.reshape(n, k, 3)
    starts = np.arange(0, k - 1, _CHUNK)
    ends = np.minimum(starts + _CHUNK, k - 1)
    middle = (turned[:, starts] + turned[:, ends]) / 2
    tangent = turned[:, ends] - turned[:, starts]
    where = (pixels[:, starts] + pixels[:, ends]) / 2
    pieces = len(starts)
    inside = ((where > -30) & (where < SIZE + 30)).all(-1)
    ratio = surface_depth.shape[0] / SIZE
    at = np.clip((where * ratio).astype(np.int32), 0, surface_depth.shape[0] - 1)
    solid = surface_depth[at[..., 1], at[..., 0]]
    before = np.where(solid > -90, middle[..., 2] > solid - 0.25, middle[..., 2] > -1.5)
    flat = np.flatnonzero(inside)
    strand = flat // pieces
    vectors = tangent.reshape(-1, 3)[flat]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6
    diffuse, shine = _shade(
        vectors, middle.reshape(-1, 3)[flat], bundle.shell[strand], bundle.bright[strand], light, hair
    )
    if bundle.filler:
        diffuse, shine = diffuse * 0.62, shine * 0
    shade = np.clip((np.minimum(diffuse, 1.15) + shine) / 2 * (_SHADES - 1), 0, _SHADES - 1).astype(np.int32)
    tones = (bundle.tone[:, starts] + bundle.tone[:, ends]).reshape(-1)[flat] / 2
    tone = np.clip(tones * (_TONES - 1) + 0.5, 0, _TONES - 1).astype(np.int32)
    depth = middle.reshape(-1, 3)[flat, 2]
    layer = np.clip((depth + 14) * (_DEPTHS / 28), 0, _DEPTHS - 1).astype(np.int32)
    front = before.reshape(-1)[flat].astype(np.int32)
    code = ((front * _DEPTHS + layer) * _SHADES + shade) * _TONES + tone
    order = np.argsort(code, kind="stable")
    code, flat = code[order], flat[order]
    fixed = np.round(pixels * (FINE * 8)).astype(np.int32)
    columns = np.minimum(starts[:, None] + np.arange(_CHUNK + 1), k - 1)
    lines = fixed[flat[:, None] // pieces, columns[flat % pieces]]
    cuts = np.flatnonzero(np.diff(code)) + 1
    begins = np.concatenate([[0], cuts]) if len(code) else np.empty(0, int)
    finish = np.concatenate([cuts, [len(code)]])
    for begin, end in zip(begins, finish, strict=False):
        value = int(code[begin])
        tone_index, value = value % _TONES, value // _TONES
        shade_index, value = value % _SHADES, value // _SHADES
        color = (*palette[tone_index, shade_index].tolist(), 255)
        canvas = canvases[value // _DEPTHS]
        cv2.polylines(canvas, list(lines[begin:end]), False, color, bundle.thickness, cv2.LINE_8, 3)
