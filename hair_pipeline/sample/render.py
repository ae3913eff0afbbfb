"""One photo of one person: image, masks, face box, landmarks.

Belongs here: putting room, body, face and hair together. Does not belong here: files (`write`).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from hair_pipeline.sample.geometry import SIZE, Camera, Shape, Surface, build_shape, features, march
from hair_pipeline.sample.grow import Strands, grow, hairline
from hair_pipeline.sample.people import Person, View
from hair_pipeline.sample.scene import cloth_color, cloth_cover, paint_room
from hair_pipeline.sample.skin import light_cloth, light_skin, linear, look_up, paint_face, skin_color
from hair_pipeline.sample.strands import draw_hair

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


def _grid_box(camera: Camera, low: tuple[float, float], high: tuple[float, float], step: int) -> tuple[int, ...]:
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


def render(model: Model, view: View, *, blur_face: bool | None = None) -> Photo:
    """Draw one view. `blur_face` overrides the person's own setting.

    Deterministic: the same model and view give the same bytes.
    """
    person, shape, hair = model.person, model.shape, model.person.hair
    rng = np.random.default_rng([view.seed, 41])
    camera = Camera(view.yaw, view.pitch, view.roll, view.scale, view.origin)
    light = np.array(view.light, np.float32)
    warm = rng.uniform(-0.06, 0.06)
    key = np.array([1 + warm, 1.0, 1 - warm], np.float32) * np.float32(rng.uniform(0.72, 0.9))
    wall = linear(person.wall)
    ambient = (0.30 + 0.14 * wall / wall.max()) * np.float32(rng.uniform(0.85, 1.1))
    image = paint_room(person, view)

    head = march(shape, camera, "head", _grid_box(camera, (-13.0, -15.5), (13.0, 14.0), 2), 2, 16)
    body = march(shape, camera, "body", _grid_box(camera, (-30.0, -60.0), (30.0, -1.0), 4), 4, 16)
    depth = np.full((SIZE // 2, SIZE // 2), -99, np.float32)
    face_depth = np.where(head.distance <= 0.02, head.point @ camera.rotation[2], -99)
    bx0, by0, bx1, by1 = (v // 2 for v in body.box)
    hx0, hy0, hx1, hy1 = (v // 2 for v in head.box)
    body_depth = np.where(body.distance <= 0.02, body.point @ camera.rotation[2], -99).repeat(2, 0).repeat(2, 1)
    depth[by0:by1, bx0:bx1] = body_depth
    head_over = np.full_like(depth, -99)
    head_over[hy0:hy1, hx0:hx1] = face_depth
    layers = draw_hair(
        model.strands, hair, camera, np.maximum(depth, head_over), light, ambient.astype(np.float32), key
    )
    image = image * (1 - layers.behind[..., 3:]) + layers.behind[..., :3]
    solid = np.zeros((SIZE, SIZE), np.float32)

    # neck, shoulders, clothes
    x0, y0, x1, y1 = body.box
    point, normal = body.full(body.point), body.full(body.normal)
    normal /= np.linalg.norm(normal, axis=2, keepdims=True) + 1e-6
    under = cloth_cover(person, point)
    tone = skin_color(person.parameters)
    neck = light_skin(np.broadcast_to(tone * np.float32(0.94), point.shape), normal, light, ambient, key)
    chin = np.clip((point[..., 1] + 17.5) / 6, 0, 1)
    neck *= (1 - 0.5 * chin * chin)[..., None]
    worn = light_cloth(cloth_color(person, point), normal, light, ambient, key)
    worn *= (0.75 + 0.25 * np.clip((-15.2 - point[..., 1]) / 3, 0, 1))[..., None]
    edge = np.exp(-(((under - 0.5) / 0.35) ** 2))[..., None]
    painted = (neck * (1 - under[..., None]) + worn * under[..., None]) * (1 - 0.25 * edge)
    cover = _coverage(body, camera.scale)
    region = image[y0:y1, x0:x1]
    region += (painted - region) * cover[..., None]
    solid[y0:y1, x0:x1] = cover
    skin = np.zeros((SIZE, SIZE), np.float32)
    skin[y0:y1, x0:x1] = cover * (1 - under)

    # head
    x0, y0, x1, y1 = head.box
    point, normal = head.full(head.point), head.full(head.normal)
    normal /= np.linalg.norm(normal, axis=2, keepdims=True) + 1e-6
    albedo = look_up(model.chart, point)
    behind = np.clip((1.5 - point[..., 2]) / 2, 0, 1)[..., None]
    albedo = albedo * (1 - behind) + tone * np.float32(0.97) * behind
    ex, ey, ez = shape.ear
    ear = np.exp(-(((point[..., 1] - ey - 0.2) / 1.7) ** 2) - ((point[..., 2] - ez + 0.1) / 0.75) ** 2)
    ear *= np.abs(point[..., 0]) > ex - 1
    albedo = albedo * (1 - 0.5 * ear[..., None] * np.array([0.7, 1, 1], np.float32))
    scalp = _scalp(point, hair.parting != "none" and not hair.has_bangs, hair.parting_x)
    root = linear(hair.rgb) * np.float32(0.45)
    albedo = albedo * (1 - scalp[..., None]) + root * scalp[..., None]
    painted = light_skin(albedo, normal, light, ambient, key)
    painted *= 1 - 0.25 * np.clip((-8.5 - point[..., 1]) / 4, 0, 1)[..., None]
    cover = _coverage(head, camera.scale)
    over = np.full((SIZE // 2, SIZE // 2), 1, np.float32)
    hidden = (head_over < depth) & (head_over > -90)
    over[hidden] = 0
    over = cv2.resize(over, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)[y0:y1, x0:x1]
    cover = cover * over
    shadow = cv2.GaussianBlur(layers.before[..., 3], (0, 0), 7)
    move = np.float32([[1, 0, -view.light[0] * 9], [0, 1, view.light[1] * 10]])
    shadow = cv2.warpAffine(shadow, move, (SIZE, SIZE))
    region = image[y0:y1, x0:x1]
    region += (painted - region) * cover[..., None]
    skin[y0:y1, x0:x1] = skin[y0:y1, x0:x1] * (1 - cover) + cover * (1 - scalp)
    grown = np.zeros((SIZE, SIZE), np.float32)
    grown[y0:y1, x0:x1] = cover * scalp
    solid[y0:y1, x0:x1] = np.maximum(solid[y0:y1, x0:x1], cover)
    image *= (1 - 0.5 * shadow * solid)[..., None] + (0.08 * shadow * solid)[..., None] * np.float32([1, 0.4, 0.3])

    image = image * (1 - layers.before[..., 3:]) + layers.before[..., :3]
    amount = 1 - (1 - layers.before[..., 3]) * (1 - grown) * (1 - layers.behind[..., 3] * (1 - solid))
    hair_mask = _clean(amount > 0.5)
    skin_mask = _clean((skin > 0.5) & ~hair_mask) & ~hair_mask
    finished = _develop(image, rng)
    box, landmarks = _find_face(model, camera, head, skin_mask)
    blur = None
    if box is not None and (person.blurred if blur_face is None else blur_face):
        finished, blur = _blur_face(finished, model, camera)
    return Photo(finished, hair_mask, skin_mask, box, landmarks, blur)


def _clean(mask: np.ndarray) -> np.ndarray:
    """Small gaps closed, small specks removed."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    closed = cv2.morphologyEx(closed, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=4)
    small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < 60)
    closed[np.isin(labels, small[small > 0])] = 0
    count, labels, stats, _ = cv2.connectedComponentsWithStats(1 - closed, connectivity=4)
    small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < 60)
    closed[np.isin(labels, small[small > 0])] = 1
    return closed.astype(bool)


def _develop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Linear light to sRGB bytes with a soft shoulder, a little lens blur and sensor noise."""
    bright = np.clip(image, 0, None)
    toned = np.sqrt(bright / (1 + 0.12 * bright) * 1.1)
    toned = cv2.GaussianBlur(toned.astype(np.float32), (0, 0), 0.45)
    noise = np.empty((SIZE, SIZE, 3), np.float32)
    cv2.setRNGSeed(int(rng.integers(2**31)))
    cv2.randn(noise, (0, 0, 0), (0.009, 0.009, 0.009))
    return np.clip((toned + noise) * 255 + 0.5, 0, 255).astype(np.uint8)


def _find_face(
    model: Model, camera: Camera, head: Surface, skin: np.ndarray
) -> tuple[tuple[float, float, float, float] | None, np.ndarray]:
    none = np.empty((0, 2), np.float32)
    if abs(camera.yaw) > FACE_YAW:
        return None, none
    x, y, z = (head.point[..., i] for i in range(3))
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
