"""One photo of one person: image, masks, face box, landmarks.

Belongs here: putting room, body, face and hair together. Does not belong here: files (`write`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from hair_pipeline.sample.geometry import SIZE, Camera, Shape, Surface, build_shape, features, march
from hair_pipeline.sample.grow import Strands, grow
from hair_pipeline.sample.guides import hairline
from hair_pipeline.sample.people import Person, View
from hair_pipeline.sample.scene import cloth_color, cloth_cover, paint_room
from hair_pipeline.sample.skin import light_cloth, light_skin, linear, look_up, paint_face, skin_color
from hair_pipeline.sample.strands import NOTHING, draw_hair
from hair_pipeline.sample.vectors import dot, unit

FACE_YAW = 95.0
"""Degrees; beyond it no face is seen."""


@dataclass(frozen=True)
class Model:
    """What all views of a person share."""

    person: Person
    shape: Shape
    chart: np.ndarray
    strands: list[Strands]


@dataclass(frozen=True)
class Photo:
    """A rendered view.

    Attributes:
        image: uint8 (512, 512, 3) RGB. hair, skin: bool (512, 512), disjoint; skin is face, ears and neck.
        box: face box x1 y1 x2 y2 in pixels, None when no face is seen.
        landmarks: float32 (n, 2) pixels of eyes, nose and mouth corners that are seen.
        blur: polygon (n, 2) of the blurred face region in pixels, None when nothing is blurred.
    """

    image: np.ndarray
    hair: np.ndarray
    skin: np.ndarray
    box: tuple[float, float, float, float] | None
    landmarks: np.ndarray
    blur: np.ndarray | None


def build_model(person: Person) -> Model:
    """Everything about a person that does not depend on the view."""
    parameters = person.parameters
    shape = build_shape(parameters, 1.0 if person.female else 0.0)
    chart = paint_face(parameters, shape, person.female, person.seed)
    return Model(person, shape, chart, grow(person, shape))


def _grid_box(
    camera: Camera, low: tuple[float, float], high: tuple[float, float], step: int
) -> tuple[int, int, int, int]:
    """A pixel rectangle around the cm rectangle low..high (x, y), clipped to the picture, sides divisible by step."""
    x0 = max(0, int(camera.origin[0] + low[0] * camera.scale)) // step * step
    x1 = min(SIZE, -(-int(camera.origin[0] + high[0] * camera.scale) // step) * step)
    y0 = max(0, int(camera.origin[1] - high[1] * camera.scale)) // step * step
    y1 = min(SIZE, -(-int(camera.origin[1] - low[1] * camera.scale) // step) * step)
    return x0, y0, x1, y1


def _coverage(surface: Surface, scale: float) -> np.ndarray:
    """Soft silhouette (h, w) at full resolution."""
    return np.clip(0.5 - surface.full(surface.distance) * scale, 0, 1)


def _scalp(point: np.ndarray, parted: bool, parting_x: float) -> np.ndarray:
    """Share of scalp colour, 0-1, at surface points (h, w, 3)."""
    cover = np.clip((point[..., 1] - hairline(point[..., 2]) + 0.25) / 0.7, 0, 1)
    if parted:
        line = np.exp(-(((point[..., 0] - parting_x) / 0.22) ** 2)) * (point[..., 2] > -3)
        cover = cover * (1 - 0.75 * line)
    return cover.astype(np.float32)


@dataclass(frozen=True)
class _Light:
    """Direction towards the light (3,) in the camera's frame, colours of the dome and of the light, linear."""

    direction: np.ndarray
    ambient: np.ndarray
    key: np.ndarray


@dataclass
class _Canvas:
    """What has been painted so far, each float32 (512, 512[, 3])."""

    image: np.ndarray  # linear light
    solid: np.ndarray  # coverage of body and head
    skin: np.ndarray  # coverage of bare skin
    scalp: np.ndarray  # coverage of scalp under hair


def _light(person: Person, view: View, rng: np.random.Generator) -> _Light:
    warm = rng.uniform(-0.06, 0.06)
    key = np.array([1 + warm, 1.0, 1 - warm], np.float32) * np.float32(rng.uniform(0.72, 0.9))
    wall = linear(person.wall)
    ambient = (0.30 + 0.14 * wall / wall.max()) * np.float32(rng.uniform(0.85, 1.1))
    return _Light(np.array(view.light, np.float32), ambient.astype(np.float32), key)


def _depths(head: Surface, body: Surface, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Depth of head and of body at half the picture's size, float32 (256, 256), NOTHING where there is none."""
    result = []
    for part in (head, body):
        depth = np.full((SIZE // 2, SIZE // 2), NOTHING, np.float32)
        seen = np.where(part.distance <= 0.02, dot(part.point, camera.rotation[2]), NOTHING)
        x0, y0, x1, y1 = (v // 2 for v in part.box)
        factor = part.step // 2
        depth[y0:y1, x0:x1] = seen.repeat(factor, 0).repeat(factor, 1)
        result.append(depth)
    return result[0], result[1]


def _paint_body(canvas: _Canvas, model: Model, body: Surface, scale: float, light: _Light) -> None:
    """Neck, shoulders and clothes; lit at half resolution, outlined at full."""
    person = model.person
    point, normal = body.enlarge(body.point, 2), unit(body.enlarge(body.normal, 2))
    under = cloth_cover(person, point)[..., None]
    tone = np.broadcast_to(skin_color(person.parameters) * np.float32(0.94), point.shape)
    neck = light_skin(tone, normal, light.direction, light.ambient, light.key)
    height = point[..., 1:2]
    neck *= 1 - 0.42 * np.clip((height + 16.0) / 3.5, 0, 1)
    worn = light_cloth(cloth_color(person, point), normal, light.direction, light.ambient, light.key)
    worn *= 0.75 + 0.25 * np.clip((-14.2 - height) / 3, 0, 1)
    edge = np.exp(-(((under - 0.5) / 0.35) ** 2))
    painted = (neck * (1 - under) + worn * under) * (1 - 0.25 * edge)
    painted, bare = body.enlarge(painted, 2), 1 - body.enlarge(under, 2)
    cover = _coverage(body, scale)
    x0, y0, x1, y1 = body.box
    region = canvas.image[y0:y1, x0:x1]
    region += (painted - region) * cover[..., None]
    canvas.solid[y0:y1, x0:x1] = cover
    canvas.skin[y0:y1, x0:x1] = cover * bare


def _paint_head(
    canvas: _Canvas, model: Model, head: Surface, before_body: np.ndarray, scale: float, light: _Light
) -> None:
    """Face, ears and scalp; `before_body` (256, 256) is 0 where the body hides the head."""
    person, shape, hair = model.person, model.shape, model.person.hair
    point, normal = head.full(head.point), unit(head.full(head.normal))
    x, y, z = (point[..., i] for i in range(3))
    albedo = look_up(model.chart, point)
    behind = np.clip((1.5 - z) / 2, 0, 1)[..., None]
    tone = skin_color(person.parameters)
    albedo += (tone * np.float32(0.97) - albedo) * behind
    ex, ey, ez = shape.ear
    ear = np.exp(-(((y - ey - 0.2) / 1.7) ** 2) - ((z - ez + 0.1) / 0.75) ** 2) * (np.abs(x) > ex - 1)
    albedo *= 1 - 0.5 * ear[..., None] * np.array([0.7, 1, 1], np.float32)
    scalp = _scalp(point, hair.parting != "none" and not hair.has_bangs, hair.parting_x)
    albedo += (linear(hair.rgb) * np.float32(0.45) - albedo) * scalp[..., None]
    painted = light_skin(albedo, normal, light.direction, light.ambient, light.key)
    painted *= 1 - 0.25 * np.clip((-8.5 - y) / 4, 0, 1)[..., None]
    x0, y0, x1, y1 = head.box
    cover = _coverage(head, scale)
    cover *= cv2.resize(before_body, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)[y0:y1, x0:x1]
    region = canvas.image[y0:y1, x0:x1]
    region += (painted - region) * cover[..., None]
    bare = canvas.skin[y0:y1, x0:x1]
    bare += (1 - scalp - bare) * cover
    canvas.scalp[y0:y1, x0:x1] = cover * scalp
    canvas.solid[y0:y1, x0:x1] = np.maximum(canvas.solid[y0:y1, x0:x1], cover)


def _cast_shadow(canvas: _Canvas, hair: np.ndarray, view: View) -> None:
    """The soft shadow of the hair (512, 512) before the body on skin and clothes."""
    half = cv2.resize(hair, (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA)
    half = cv2.GaussianBlur(half, (0, 0), 3.5)
    move = np.array([[1, 0, -view.light[0] * 4.5], [0, 1, view.light[1] * 5]], np.float32)
    half = cv2.warpAffine(half, move, (SIZE // 2, SIZE // 2))
    shade = cv2.resize(half, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR) * canvas.solid
    canvas.image *= 1 - shade[..., None] * np.array([0.44, 0.48, 0.49], np.float32)


def render(model: Model, view: View, *, blur_face: bool | None = None) -> Photo:
    """Draw one view. `blur_face` overrides the person's own setting.

    Deterministic: the same model and view give the same bytes.
    """
    person = model.person
    rng = np.random.default_rng([view.seed, 41])
    camera = Camera(view.yaw, view.pitch, view.roll, view.scale, view.origin)
    light = _light(person, view, rng)
    head = march(model.shape, camera, "head", _grid_box(camera, (-12.4, -13.8), (12.4, 13.4), 2), 2, 20)
    body = march(model.shape, camera, "body", _grid_box(camera, (-30.0, -60.0), (30.0, -1.0), 4), 4, 16)
    head_depth, body_depth = _depths(head, body, camera)
    layers = draw_hair(
        model.strands,
        person.hair,
        camera,
        np.maximum(head_depth, body_depth),
        light.direction,
        light.ambient,
        light.key,
    )
    blank = [np.zeros((SIZE, SIZE), np.float32) for _ in range(3)]
    canvas = _Canvas(paint_room(person, view), *blank)
    canvas.image = canvas.image * (1 - layers.behind[..., 3:]) + layers.behind[..., :3]
    _paint_body(canvas, model, body, camera.scale, light)
    wide = np.ones((5, 5), np.uint8)
    covered = cv2.dilate(((head_depth < body_depth) & (head_depth > NOTHING)).astype(np.uint8), wide) > 0
    within = cv2.erode((body_depth > NOTHING).astype(np.uint8), wide) > 0
    hidden = covered & within & (head_depth < body_depth + 1.5)
    _paint_head(canvas, model, head, 1 - hidden.astype(np.float32), camera.scale, light)
    _cast_shadow(canvas, layers.before[..., 3], view)
    image = canvas.image * (1 - layers.before[..., 3:]) + layers.before[..., :3]
    bare = (1 - layers.before[..., 3]) * (1 - canvas.scalp) * (1 - layers.behind[..., 3] * (1 - canvas.solid))
    hair = _clean(bare < 0.5)
    skin = _clean((canvas.skin > 0.5) & ~hair) & ~hair
    finished = _develop(image, rng)
    box, landmarks = _find_face(model, camera, head)
    blur = None
    if box is not None and (person.blurred if blur_face is None else blur_face):
        finished, blur = _blur_face(finished, model, camera)
    return Photo(finished, hair, skin, box, landmarks, blur)


def _clean(mask: np.ndarray) -> np.ndarray:
    """A mask without gaps and specks of fewer than 60 pixels."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    closed = cv2.morphologyEx(closed, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    return ~_without_specks(~_without_specks(closed > 0))


def _without_specks(mask: np.ndarray, least: int = 60) -> np.ndarray:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    keep = stats[:, cv2.CC_STAT_AREA] >= least
    keep[0] = False
    return keep[labels]


@functools.cache
def _grain() -> np.ndarray:
    """A large field of sensor noise to cut pieces from, float32 (640, 640, 3)."""
    return np.random.default_rng(71).normal(0, 0.009, (SIZE + 128, SIZE + 128, 3)).astype(np.float32)


def _develop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Linear light to sRGB bytes with a soft shoulder, a little lens blur and sensor noise."""
    bright = np.clip(image, 0, None)
    toned = np.sqrt(bright / (1 + 0.22 * bright) * 1.2)
    toned = cv2.GaussianBlur(toned.astype(np.float32), (0, 0), 0.45)
    x, y = (int(v) for v in rng.integers(0, 128, 2))
    noise = _grain()[y : y + SIZE, x : x + SIZE]
    return np.clip((toned + noise) * 255 + 0.5, 0, 255).astype(np.uint8)


def _find_face(
    model: Model, camera: Camera, head: Surface
) -> tuple[tuple[float, float, float, float] | None, np.ndarray]:
    none = np.empty((0, 2), np.float32)
    if abs(camera.yaw) > FACE_YAW:
        return None, none
    y, z = head.point[..., 1], head.point[..., 2]
    face = (head.distance <= 0.05) & (z > 1.0) & (y < 6.8)
    if face.sum() < 150:
        return None, none
    rows, columns = np.flatnonzero(face.any(1)), np.flatnonzero(face.any(0))
    x0, y0 = head.box[:2]
    box = (
        float(x0 + columns[0] * head.step),
        float(y0 + rows[0] * head.step),
        float(x0 + (columns[-1] + 1) * head.step),
        float(y0 + (rows[-1] + 1) * head.step),
    )
    place = features(model.person.parameters)
    points = np.array(
        [
            (-place["eye_x"], place["eye_y"], 8.0),
            (place["eye_x"], place["eye_y"], 8.0),
            (0, place["nose_y"], 10.4),
            (-place["mouth_half"], place["mouth_y"], 8.4),
            (place["mouth_half"], place["mouth_y"], 8.4),
        ],
        np.float32,
    )
    pixels, _ = camera.project(points)
    facing = np.array([-0.5, 0.5, 0, -0.5, 0.5]) * np.sin(np.radians(camera.yaw)) + np.cos(np.radians(camera.yaw))
    return box, pixels[facing > 0.2].astype(np.float32)


def _blur_face(image: np.ndarray, model: Model, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Blur from eyes to mouth; returns the picture and the region's polygon in pixels."""
    place = features(model.person.parameters)
    top, bottom = place["brow_y"] + 0.6, place["mouth_y"] - 1.4
    y = np.linspace(top, bottom, 9)
    right = np.stack([np.full(9, 6.6), y, np.full(9, 4.0)], 1)
    middle = np.stack([np.zeros(9), y, np.full(9, 9.6)], 1)
    cloud, _ = camera.project(np.concatenate([right, right * (-1, 1, 1), middle]).astype(np.float32))
    hull = cv2.convexHull(cloud.astype(np.float32))[:, 0]
    hull = np.clip(hull, 0, SIZE - 1)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillConvexPoly(mask, np.round(hull).astype(np.int32), 255)
    soft = cv2.GaussianBlur(mask, (0, 0), 2)[..., None].astype(np.float32) / 255
    x0, y0, w, h = cv2.boundingRect(np.round(hull).astype(np.int32))
    smeared = image.astype(np.float32)
    smeared[y0 : y0 + h, x0 : x0 + w] = cv2.GaussianBlur(smeared[y0 : y0 + h, x0 : x0 + w], (0, 0), 11)
    return np.clip(image * (1 - soft) + smeared * soft + 0.5, 0, 255).astype(np.uint8), hull
