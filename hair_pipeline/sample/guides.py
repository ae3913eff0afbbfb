"""Guide hairs: where hair is rooted on the scalp, how it is combed, slides over the head and falls.

Belongs here: roots, the path of a few hundred guides, where they end. Does not belong here: curl and the strands
that follow the guides (`grow`). Centimetres in the head's frame, as in `geometry`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hair_pipeline.sample.geometry import BOTTOM, STEPS, TOP, Shape, features, head_field
from hair_pipeline.sample.people import Hair, Person
from hair_pipeline.sample.vectors import dot, unit

_HAIRLINE = np.array(
    [
        (9.5, 7.6),
        (8.6, 7.3),
        (7.4, 7.5),
        (6.0, 7.3),
        (4.8, 5.2),
        (3.6, 2.6),
        (2.4, -0.6),
        (1.2, -0.9),
        (0.2, 1.6),
        (-1.6, 2.6),
        (-3.0, 0.5),
        (-4.2, -2.6),
        (-6.0, -5.6),
        (-8.0, -6.6),
        (-11.0, -7.0),
    ]
)
"""Lowest y of the scalp for a depth z, going round the temple, the sideburn and the ear to the nape."""
CENTRE = np.array([0.0, 1.2, -0.7], np.float32)
"""Middle of the ellipsoid that hair slides over."""
_CUT = {"womens_short": -4.2, "bob": -9.6, "medium": -17.0, "long": -33.0}
"""Height where the hair ends, cm."""
_SPAN = {"mens": 10.0, "womens_short": 22.0, "bob": 30.0, "medium": 38.0, "long": 52.0}
"""Longest guide, cm."""


@dataclass(frozen=True)
class Guides:
    """Paths of guide hairs.

    Attributes:
        roots: float32 (g, 3). points: float32 (g, n, 3) at equal steps of `stride` cm.
        end: float32 (g,) fractional index of the last point that is kept. fringe: bool (g,) part of the bangs.
        shell: float32 (g,) 0 near the scalp .. 1 outermost.
    """

    roots: np.ndarray
    points: np.ndarray
    end: np.ndarray
    fringe: np.ndarray
    shell: np.ndarray
    stride: float


def hairline(z: np.ndarray) -> np.ndarray:
    """Lowest y of the scalp at depth z (cm)."""
    return np.interp(z, _HAIRLINE[::-1, 0], _HAIRLINE[::-1, 1])


def scalp_roots(shape: Shape, count: int, rng: np.random.Generator) -> np.ndarray:
    """About `count` points spread evenly over the scalp: float32 (n, 3)."""
    total = int(count / 0.44)
    index = np.arange(total) + 0.5
    polar = np.arccos(1 - 2 * index / total)
    angle = np.pi * (1 + 5**0.5) * index + rng.uniform(0, 6)
    way = np.stack([np.sin(polar) * np.sin(angle), np.cos(polar), np.sin(polar) * np.cos(angle)], 1)
    way = unit(way + rng.normal(0, 0.6 / np.sqrt(total), way.shape)).astype(np.float32)
    low, high = np.full(total, 2.0, np.float32), np.full(total, 14.0, np.float32)
    for _ in range(11):
        middle = (low + high) / 2
        p = CENTRE + way * middle[:, None]
        outside = head_field(shape, p[:, 0], p[:, 1], p[:, 2], plain=True) > 0
        high, low = np.where(outside, middle, high), np.where(outside, low, middle)
    p = CENTRE + way * low[:, None]
    return p[p[:, 1] > hairline(p[:, 2]) + rng.normal(0, 0.12, total)]


def in_fringe(roots: np.ndarray) -> np.ndarray:
    """bool (n,): roots above the forehead, whose hair would become bangs."""
    return (roots[:, 2] > 2.2) & (np.abs(roots[:, 0]) < 6.3) & (roots[:, 1] > 5.2)


def _flow(roots: np.ndarray, normal: np.ndarray, hair: Hair, fringe: np.ndarray, side: np.ndarray) -> np.ndarray:
    """The direction hair is combed in at each root, along the scalp."""
    crown = np.array([hair.parting_x * 0.4, 12.0, -4.0], np.float32)
    radial = unit(roots - crown)
    lateral = np.stack([side, np.zeros_like(side), np.zeros_like(side)], 1)
    top = np.clip((roots[:, 1] - 4.5) / 4, 0, 1) * np.clip((roots[:, 2] + 6) / 6, 0, 1)
    if hair.length == "mens" and hair.bangs == "none":
        combed = lateral * 0.25 + np.array([0, 0.25, -1.0], np.float32)
    else:
        backward = {"none": 0.55, "swept": 0.35, "along_face_line": 0.05}.get(hair.bangs, 0.2)
        combed = lateral + np.array([0, 0, -backward], np.float32)
    if hair.parting == "none" and hair.length != "mens":
        top = top * np.clip((roots[:, 2] + 2) / 5, 0, 1)
    flow = radial * (1 - top[:, None]) + combed * top[:, None]
    if hair.has_bangs:
        edge = np.clip(np.abs(roots[:, 0]) / 6.3, 0, 1) ** 3
        forward = np.stack([roots[:, 0] * (0.03 + 0.06 * edge), -0.15 - 0.8 * edge, 1 - 0.8 * edge], 1)
        flow = np.where(fringe[:, None], forward, flow)
    return unit(flow - normal * dot(flow, normal)[:, None])


def _ends(
    roots: np.ndarray, hair: Hair, fringe: np.ndarray, brow: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Height where each guide ends (cm) and its greatest length (cm)."""
    n = len(roots)
    if hair.length == "mens":
        top = np.clip((roots[:, 1] - 3.0) / 5, 0, 1)
        cut = np.full(n, -40.0)
        longest = (2.2 + 4.6 * top**1.3) * rng.uniform(0.8, 1.1, n) * (1.25 if hair.curl_class == "curly" else 1.0)
    else:
        cut = _CUT[hair.length] + rng.normal(0, {"bob": 0.35, "medium": 1.2, "long": 1.8}.get(hair.length, 0.8), n)
        longest = np.full(n, 60.0)
        if hair.length == "womens_short":
            cut = cut - 2.2 * np.clip((-roots[:, 2] - 3) / 5, 0, 1)
            longest = 12.5 * rng.uniform(0.75, 1.15, n)
        elif hair.length in ("medium", "long"):
            layered = rng.random(n) < 0.3
            cut = np.where(layered, cut * rng.uniform(0.6, 0.95, n), cut)
    if hair.has_bangs:
        above, rough = {"full": (-0.1, 0.18), "see_through": (-0.5, 0.45), "choppy": (1.5, 0.8)}.get(
            hair.bangs, (0.2, 0.75)
        )
        outer = np.clip(np.abs(roots[:, 0]) - 3.8, 0, 3)
        level = brow + above - outer * 1.3 + rng.normal(0, rough, n)
        cut = np.where(fringe, level, cut)
        longest = np.where(fringe, 40.0, longest)
    return cut, longest


def _slide(moved: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Points pushed out of the ellipsoid with half axes (g, 3)."""
    rel = (moved - CENTRE) / axes
    radius = np.sqrt(dot(rel, rel))[:, None]
    return np.where(radius < 1, CENTRE + (moved - CENTRE) / np.maximum(radius, 1e-3), moved)


def _open_face(moved: np.ndarray, side: np.ndarray, lift: np.ndarray, half_width: float) -> np.ndarray:
    """Points moved aside where they would hang before the face."""
    x, y, z = moved.T
    free = half_width * np.clip((8.2 - y) / 5.5, 0, 1) ** 0.7 * np.clip((z - 0.5) / 3.5, 0, 1)
    held = np.maximum(side * x, free + lift * 0.5) * side
    facing = (y < 8.2) & (z > 0.5)
    cheek = 1.0 + 8.6 * np.sqrt(np.clip(1 - (held / 9.5) ** 2, 0.05, 1)) + lift * 0.5
    return np.stack([np.where(facing, held, x), y, np.where(facing & (y < 5), np.minimum(z, cheek), z)], 1)


def _clear_shoulders(moved: np.ndarray, shape: Shape, before: np.ndarray, lift: np.ndarray) -> np.ndarray:
    """Points moved before (+1) or behind (-1) neck and shoulders."""
    x, y, z = moved.T
    row = np.clip((TOP - y) / (TOP - BOTTOM) * (STEPS - 1), 0, STEPS - 1).astype(int)
    width, middle, depth = shape.body[row].T
    across = np.clip(1 - (np.abs(x) / (width + 0.6)) ** 2.3, 0, 1) ** (1 / 2.3)
    wall = middle + before * (depth * across + 0.5 + lift * 0.6)
    near = np.clip((-9.5 - y) / 7, 0, 1) * (across > 0)
    target = np.where(before > 0, np.maximum(z, wall), np.minimum(z, wall))
    return np.stack([x, y, z + (target - z) * near], 1)


def _stop(points: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Fractional index where each path falls below its height `cut`."""
    below = points[..., 1] < cut[:, None]
    below[:, :2] = False
    last = points.shape[1] - 1
    first = np.maximum(np.where(below.any(1), below.argmax(1), last) - 1, 0)
    rows = np.arange(len(points))
    y0, y1 = points[rows, first, 1], points[rows, first + 1, 1]
    return np.where(below.any(1), first + np.clip((y0 - cut) / np.maximum(y0 - y1, 1e-3), 0, 1), last)


def grow_guides(person: Person, shape: Shape, count: int, rng: np.random.Generator) -> Guides:
    """About `count` guides of a person's hair."""
    hair = person.hair
    mens = hair.length == "mens"
    roots = scalp_roots(shape, count, rng)
    fringe = in_fringe(roots) & hair.has_bangs
    shell = rng.beta(1.3, 1.0, len(roots)).astype(np.float32)
    if hair.bangs == "see_through":
        keep = ~fringe | (rng.random(len(roots)) < 0.6)
        roots, fringe, shell = roots[keep], fringe[keep], shell[keep]
    half_width = float(shape.head[int((TOP - 3.0) / (TOP - BOTTOM) * (STEPS - 1)), 0])
    axes = np.array([half_width + 0.15, 11.15, 9.9], np.float32)
    normal = unit((roots - CENTRE) / axes**2)
    parting = hair.parting_x
    if hair.bangs == "swept":
        parting = -4.6 if parting <= 0 else 4.6
    own_side = np.where(roots[:, 0] >= 0, 1.0, -1.0)
    side = np.where(roots[:, 0] >= parting, 1.0, -1.0)
    side = np.where((np.abs(roots[:, 0]) > 5.5) | (roots[:, 2] < -4), own_side, side).astype(np.float32)
    flow = _flow(roots, normal, hair, fringe, side)
    cut, longest = _ends(roots, hair, fringe, features(person.parameters)["brow_y"], rng)
    span = max(_SPAN[hair.length], 20.0 if hair.has_bangs else 0.0)
    steps = int(np.clip(span / 1.1, 16, 44))
    stride = span / (steps - 1)
    puff = {"straight": 0.55, "wavy": 0.9, "curly": 1.5}[hair.curl_class] * (0.6 + 0.8 * hair.volume)
    lift = np.where(fringe, 0.4 + 0.7 * shell, 0.35 + shell * puff * (0.55 if mens else 1.0))
    weight = {"straight": 1.0, "wavy": 0.9, "curly": 0.8}[hair.curl_class] * (0.35 if mens else 1.0)
    pulled = np.where(fringe, 0.9, weight)
    rise = np.where(in_fringe(roots), 0.25, 0.4)
    if mens:
        rise[:] = 0.35 if hair.has_bangs else 0.75
    crown = np.hypot(roots[:, 0] - hair.parting_x * 0.4, roots[:, 2] + 4)
    rise = rise * np.where((roots[:, 1] > 6) & ~np.bool_(mens), np.clip(crown / 5, 0.05, 1), 1)
    before = np.where(roots[:, 2] > 1.5 - 5 * (hair.front_share - 0.5), 1.0, -1.0)
    before = np.where((rng.random(len(roots)) < 0.12) & (np.abs(roots[:, 2]) < 4), -before, before)
    opened = 5.0 if hair.has_bangs else {"along_face_line": 5.6, "swept": 5.9}.get(hair.bangs, 6.5)
    direction: np.ndarray = unit(normal * rise[:, None] + flow)
    points = np.empty((len(roots), steps, 3), np.float32)
    position: np.ndarray = roots.astype(np.float32)
    points[:, 0] = position
    for index in range(1, steps):
        travelled = index * stride
        gravity = 0.26 * stride * min(1.0, 0.25 + travelled / 7)
        comb = 0.5 * stride * max(0.0, 1 - travelled / 9)
        direction = direction + flow * comb
        direction[:, 1] -= pulled * gravity
        moved = position + unit(direction) * stride
        moved = _slide(moved, axes + lift[:, None] * min(1.0, 0.25 + travelled / 2.5))
        moved = np.where(fringe[:, None], moved, _open_face(moved, side, lift, opened))
        moved = _clear_shoulders(moved, shape, before, lift)
        direction = unit(unit(direction) * 0.35 + unit(moved - position) * 0.65)
        position = moved.astype(np.float32)
        points[:, index] = position
    for _ in range(2):
        points[:, 1:-1] = (points[:, :-2] + 2 * points[:, 1:-1] + points[:, 2:]) / 4
    end = np.clip(np.minimum(_stop(points, cut), longest / stride), 1.5, steps - 1).astype(np.float32)
    return Guides(roots, points, end, fringe, shell, stride)
