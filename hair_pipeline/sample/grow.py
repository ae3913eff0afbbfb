"""Growing hair: strands in three dimensions, in centimetres, from the attributes of a person.

Belongs here: roots, guides that slide over the head and fall, curl, clumps, flyaways. Does not belong here: what a
camera sees of them (`strands`). All strands of a person are grown once and seen from every view.
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

_CENTRE = np.array([0.0, 1.2, -0.7], np.float32)
_CUT = {"womens_short": -4.2, "bob": -9.6, "medium": -17.0, "long": -33.0}
"""Height where the hair ends, cm."""


@dataclass(frozen=True)
class Strands:
    """A bundle of strands with the same number of points.

    Attributes:
        points: float32 (n, k, 3), root to tip, head frame, cm.
        shell: float32 (n,) 0 near the scalp .. 1 outermost.
        tone: float32 (n, k) 0 root colour .. 1 tip or streak colour.
        bright: float32 (n,) factor of the strand's own brightness.
        thickness: line width of the bundle in pixels at twice the picture's resolution.
        filler: dark mass under the strands; drawn first.
    """

    points: np.ndarray
    shell: np.ndarray
    tone: np.ndarray
    bright: np.ndarray
    thickness: int
    filler: bool = False


@dataclass(frozen=True)
class Curl:
    """Shape of a curl: wavelength and radius in cm, how flat (0 coil, 1 plane), where along the strand it begins."""

    wavelength: float
    radius: float
    flat: float
    begins: float
    bend: float = 0.0  # tips bent inwards (+) or outwards (-), cm


_CURLS = {
    "none": Curl(9.0, 0.06, 0.8, 0.2),
    "J": Curl(9.0, 0.05, 0.8, 0.2, 1.6),
    "C": Curl(9.0, 0.06, 0.8, 0.2, 2.6),
    "CC": Curl(8.2, 0.9, 0.85, 0.12),
    "CS": Curl(7.4, 1.0, 0.8, 0.1),
    "SC": Curl(6.8, 1.0, 0.8, 0.08),
    "S": Curl(6.0, 1.05, 0.75, 0.03),
    "SS": Curl(2.9, 0.72, 0.25, 0.0),
    "S3": Curl(2.1, 0.62, 0.05, 0.0),
}


def hairline(z: np.ndarray) -> np.ndarray:
    """Lowest y of the scalp at depth z (cm)."""
    return np.interp(z, _HAIRLINE[::-1, 0], _HAIRLINE[::-1, 1])


def _skull(shape: Shape) -> np.ndarray:
    """Half axes of the ellipsoid that hair slides over."""
    row = int((TOP - 3.0) / (TOP - BOTTOM) * (STEPS - 1))
    return np.array([float(shape.head[row, 0]) + 0.15, 11.15, 9.9], np.float32)


def scalp_roots(shape: Shape, count: int, rng: np.random.Generator) -> np.ndarray:
    """About `count` points spread evenly over the scalp: float32 (n, 3)."""
    total = int(count / 0.44)
    index = np.arange(total) + 0.5
    polar = np.arccos(1 - 2 * index / total)
    turn = np.pi * (1 + 5**0.5) * index + rng.uniform(0, 6)
    way = np.stack([np.sin(polar) * np.sin(turn), np.cos(polar), np.sin(polar) * np.cos(turn)], 1)
    way = unit(way + rng.normal(0, 0.6 / np.sqrt(total), way.shape)).astype(np.float32)
    low, high = np.full(total, 2.0, np.float32), np.full(total, 14.0, np.float32)
    for _ in range(11):
        middle = (low + high) / 2
        p = _CENTRE + way * middle[:, None]
        outside = head_field(shape, p[:, 0], p[:, 1], p[:, 2], plain=True) > 0
        high, low = np.where(outside, middle, high), np.where(outside, low, middle)
    p = _CENTRE + way * low[:, None]
    return p[p[:, 1] > hairline(p[:, 2]) + rng.normal(0, 0.12, total)]


def _is_fringe(roots: np.ndarray) -> np.ndarray:
    return (roots[:, 2] > 2.2) & (np.abs(roots[:, 0]) < 6.2) & (roots[:, 1] > 5.5)


def _flow(roots: np.ndarray, normal: np.ndarray, hair: Hair, fringe: np.ndarray, side: np.ndarray) -> np.ndarray:
    """The direction hair is combed in at each root, along the scalp."""
    crown = np.array([hair.parting_x * 0.4, 12.0, -4.0], np.float32)
    radial = unit(roots - crown)
    lateral = np.stack([side, np.zeros_like(side), np.zeros_like(side)], 1)
    top = np.clip((roots[:, 1] - 4.5) / 4, 0, 1) * np.clip((roots[:, 2] + 6) / 6, 0, 1)
    sleek = hair.length == "mens" and not hair.has_bangs
    backward = {"none": 0.55, "swept": 0.35, "along_face_line": 0.05}.get(hair.bangs, 0.2)
    back = np.array([0, 0.25 if sleek else 0.0, -1.0], np.float32)
    if sleek and hair.bangs == "none":
        combed = lateral * 0.25 + back
    else:
        combed = lateral + back * backward
    if hair.parting == "none" and hair.length != "mens":
        top = top * np.clip((roots[:, 2] + 2) / 5, 0, 1)
    flow = radial * (1 - top[:, None]) + combed * top[:, None]
    if hair.has_bangs:
        forward = np.stack([roots[:, 0] * 0.03, np.full_like(side, -0.15), np.ones_like(side)], 1)
        flow = np.where(fringe[:, None], forward, flow)
    flow = flow - normal * dot(flow, normal)[:, None]
    return unit(flow)


def _reach(roots: np.ndarray, hair: Hair, fringe: np.ndarray, brow: float, rng: np.random.Generator) -> tuple:
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
        x = np.abs(roots[:, 0])
        level = {"full": brow - 0.1, "see_through": brow - 0.5, "choppy": brow + 1.5, "mens_down": brow + 0.2}[
            hair.bangs
        ]
        rough = {"full": 0.18, "see_through": 0.45, "choppy": 0.8, "mens_down": 0.75}[hair.bangs]
        level = level - np.clip(x - 4.0, 0, 3) * 0.9 + rng.normal(0, rough, n)
        cut = np.where(fringe, level, cut)
        longest = np.where(fringe, 40.0, longest)
    return cut, longest


def _fall(
    roots: np.ndarray, shape: Shape, person: Person, fringe: np.ndarray, shell: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Follow guides from their roots: (g, n, 3) points at equal steps, and how far each may be followed (index)."""
    hair, axes = person.hair, _skull(shape)
    normal = unit((roots - _CENTRE) / axes**2)
    px = hair.parting_x
    if hair.bangs == "swept":
        px = -4.6 if px <= 0 else 4.6
    side = np.where(roots[:, 0] >= px, 1.0, -1.0).astype(np.float32)
    side = np.where((np.abs(roots[:, 0]) > 5.5) | (roots[:, 2] < -4), np.where(roots[:, 0] >= 0, 1, -1), side)
    flow = _flow(roots, normal, hair, fringe, side)
    mens = hair.length == "mens"
    cut, longest = _reach(roots, hair, fringe, features(person.parameters)["brow_y"], rng)
    span = {"mens": 10.0, "womens_short": 22.0, "bob": 30.0, "medium": 38.0, "long": 52.0}[hair.length]
    if hair.has_bangs:
        span = max(span, 20.0)
    steps = int(np.clip(span / 1.1, 16, 44))
    stride = span / (steps - 1)
    puff = {"straight": 0.55, "wavy": 0.9, "curly": 1.5}[hair.curl_class] * (0.6 + 0.8 * hair.volume)
    lift = 0.35 + shell * puff * (0.55 if mens else 1.0)
    lift = np.where(fringe & hair.has_bangs, 0.4 + 0.7 * shell, lift)
    stiff = {"straight": 1.0, "wavy": 0.8, "curly": 0.55}[hair.curl_class] * (0.35 if mens else 1.0)
    stiff = np.where(fringe & hair.has_bangs, 0.9, stiff)[:, None]
    direction = unit(normal * (0.75 if mens and not hair.has_bangs else 0.45) + flow)
    points = np.empty((len(roots), steps, 3), np.float32)
    position = roots.astype(np.float32)
    points[:, 0] = position
    before = np.where(roots[:, 2] > 1.5 - 5 * (hair.front_share - 0.5), 1.0, -1.0)
    before = np.where((rng.random(len(roots)) < 0.12) & (np.abs(roots[:, 2]) < 4), -before, before)
    opened = {"along_face_line": 5.6, "swept": 5.9}.get(hair.bangs, 6.5)
    for step in range(1, steps):
        travelled = step * stride
        pull = 0.26 * stride * min(1.0, 0.25 + travelled / 7)
        comb = 0.5 * stride * max(0.0, 1 - travelled / 9)
        direction = unit(direction + stiff * np.array([0, -pull, 0], np.float32) + flow * comb)
        moved = position + direction * stride
        # the head
        rel = (moved - _CENTRE) / (axes + lift[:, None] * min(1.0, 0.25 + travelled / 2.5))
        radius = np.sqrt(dot(rel, rel))
        pushed = _CENTRE + (moved - _CENTRE) / np.maximum(radius, 1e-3)[:, None]
        moved = np.where((radius < 1)[:, None], pushed, moved)
        # the face stays free of hair that is not a fringe
        x, y, z = moved.T
        free = opened * np.clip((8.2 - y) / 5.5, 0, 1) ** 0.7 * np.clip((z - 0.5) / 3.5, 0, 1)
        held = np.maximum(side * x, free + lift * 0.5) * side
        x = np.where(fringe & hair.has_bangs, x, np.where((y < 8.2) & (z > 0.5), held, x))
        # the shoulders: hair passes before or behind them
        row = np.clip((TOP - y) / (TOP - BOTTOM) * (STEPS - 1), 0, STEPS - 1).astype(int)
        width, middle, depth = shape.body[row].T
        across = np.clip(1 - (np.abs(x) / (width + 0.6)) ** 2.3, 0, 1) ** (1 / 2.3)
        wall = middle + before * (depth * across + 0.5 + lift * 0.6)
        near = np.clip((-9.5 - y) / 7, 0, 1) * (across > 0)
        target = np.where(before > 0, np.maximum(z, wall), np.minimum(z, wall))
        z = z + (target - z) * near
        moved = np.stack([x, y, z], 1)
        direction = unit(direction * 0.35 + unit(moved - position) * 0.65)
        position = moved.astype(np.float32)
        points[:, step] = position
    for _ in range(2):
        points[:, 1:-1] = (points[:, :-2] + 2 * points[:, 1:-1] + points[:, 2:]) / 4
    below = points[..., 1] < cut[:, None]
    below[:, :2] = False
    end = np.where(below.any(1), below.argmax(1), steps - 1).astype(np.float32)
    first = np.maximum(end.astype(int) - 1, 0)
    rows = np.arange(len(roots))
    y0, y1 = points[rows, first, 1], points[rows, first + 1, 1]
    end = np.where(below.any(1), first + np.clip((y0 - cut) / np.maximum(y0 - y1, 1e-3), 0, 1), end)
    return points, np.clip(np.minimum(end, longest / stride), 1.5, steps - 1).astype(np.float32) * np.float32(1.0)


def _resample(points: np.ndarray, end: np.ndarray, count: int) -> np.ndarray:
    """Each guide's part up to `end` (fractional index) at `count` equal steps."""
    at = np.linspace(0, 1, count, dtype=np.float32)[None] * end[:, None]
    low = np.minimum(at.astype(int), points.shape[1] - 2)
    part = (at - low)[..., None]
    rows = np.arange(len(points))[:, None]
    return (points[rows, low] * (1 - part) + points[rows, low + 1] * part).astype(np.float32)


def _frames(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outward and sideways unit vectors across each guide, both (g, n, 3)."""
    tangent = unit(np.gradient(points, axis=1))
    out = points - _CENTRE
    out[..., 1] *= np.clip((points[..., 1] + 2) / 8, 0, 1)
    out = out - tangent * dot(out, tangent)[..., None]
    out = unit(out)
    return out, np.cross(tangent, out)


def grow(person: Person, shape: Shape) -> list[Strands]:
    """All of a person's hair, ready to be drawn from any side."""
    hair = person.hair
    rng = np.random.default_rng([person.seed, 21])
    mens = hair.length == "mens"
    curl = _CURLS[hair.curl]
    shrink = {"mens": (0.5, 0.55), "womens_short": (0.62, 0.75), "bob": (0.8, 0.9)}.get(hair.length, (1.0, 1.0))
    if hair.curl_class == "curly":
        shrink = {"mens": (0.62, 0.62), "womens_short": (0.8, 0.8)}.get(hair.length, (1.0, 1.0))
    wavelength, radius = curl.wavelength * shrink[0], curl.radius * shrink[1]
    guides = 520 if mens else 430
    roots = scalp_roots(shape, guides, rng)
    fringe = _is_fringe(roots)
    shell = rng.beta(1.3, 1.0, len(roots)).astype(np.float32)
    if hair.bangs == "see_through":
        keep = ~fringe | (rng.random(len(roots)) < 0.55)
        roots, fringe, shell = roots[keep], fringe[keep], shell[keep]
    raw, end = _fall(roots, shape, person, fringe, shell, rng)
    stride = float(np.linalg.norm(np.diff(raw, axis=1), axis=2).mean())
    typical = float(np.percentile(end, 85)) * stride
    fine = typical / wavelength * (7.5 if hair.curl_class == "curly" else 5.0)
    count = int(np.clip(fine, 18, 75)) // 3 * 3 + 1
    path = _resample(raw, end, count)
    length = end * stride
    if hair.width == "thick":
        total = 3900
    else:
        total = 4700 if hair.width == "medium" else 5400
    total = int(min(total, 145_000 / count))
    tips = scalp_roots(shape, total, rng)
    nearest = _nearest(tips, roots)
    out, across = _frames(path)
    t = np.linspace(0, 1, count, dtype=np.float32)
    # clumps: strands of a guide draw together towards the tip
    clump = {"straight": 0.62, "wavy": 0.48, "curly": 0.3}[hair.curl_class]
    spread = 1 + (clump - 1) * np.clip(t * 1.6, 0, 1)
    delta = (tips - roots[nearest])[:, None] * spread[None, :, None]
    points = path[nearest] + delta
    n = len(tips)
    arc = length[nearest][:, None] * t[None]
    if hair.curl_class == "curly":
        guide_phase, guide_stretch = rng.uniform(0, 2 * np.pi, len(roots)), rng.uniform(0.82, 1.2, len(roots))
        phase = guide_phase[nearest] + rng.normal(0, 0.35, n)
    else:  # neighbouring locks swing together
        guide_phase = rng.normal(0, 0.5, len(roots)) + np.sin(2 * np.arctan2(roots[:, 0], roots[:, 2])) * 0.8
        guide_stretch = rng.uniform(0.95, 1.06, len(roots))
        phase = guide_phase[nearest] + rng.normal(0, 0.18, n)
    angle = (2 * np.pi / wavelength) * arc * guide_stretch[nearest][:, None] + phase[:, None]
    grown = np.clip((arc / np.maximum(length[nearest][:, None], 1) - curl.begins) / 0.3, 0, 1) * np.clip(
        arc / 2.5, 0, 1
    )
    size = (radius * rng.uniform(0.75, 1.2, len(roots)))[nearest][:, None] * grown
    if hair.has_bangs:
        size = size * np.where(fringe[nearest], 0.55 if hair.curl_class != "straight" else 1.0, 1.0)[:, None]
    sway = (size * np.sin(angle)).astype(np.float32)
    rise = (size * np.cos(angle) * (1 - curl.flat)).astype(np.float32)
    points += across[nearest] * sway[..., None] + out[nearest] * (rise + np.abs(size * (1 - curl.flat)))[..., None]
    if curl.bend and not mens:
        inward = np.stack([-points[..., 0], np.zeros_like(points[..., 0]), -(points[..., 2] + 2)], -1)
        turned = unit(inward) * (curl.bend * np.clip((arc - length[nearest][:, None] + 6) / 6, 0, 1) ** 2)[..., None]
        points += turned * np.where(fringe[nearest], 0.15, 1.0)[:, None, None]
    # frizz and flyaways
    loose = rng.random(n) < 0.05
    wild = rng.normal(0, 1, (n, 3)) * np.where(loose, 1.1, 0.16)[:, None] * (0.5 if mens else 1.0)
    points += (wild[:, None] * (t**1.5)[None, :, None]).astype(np.float32)
    # strands end unevenly
    points = _shorten(points, rng.beta(6, 1.1, n).astype(np.float32) if hair.length != "bob" else rng.beta(14, 0.9, n))
    bright = np.clip(rng.normal(1, 0.13, len(roots))[nearest] * rng.normal(1, 0.12, n), 0.6, 1.5)
    bright = np.where(loose, 1.05, bright).astype(np.float32)
    own = np.clip(shell[nearest] * 0.75 + rng.uniform(0, 0.35, n), 0, 1).astype(np.float32)
    streaked = _streaks(roots, rng)
    tone = _tone(hair, points, streaked[nearest], rng)
    main = Strands(points.astype(np.float32), own, tone, bright, 2 if hair.width == "thick" else 1)
    # a dark mass under the strands, so that no scalp or room shines through
    inner = (shell < 0.75) & ~(fringe & (hair.bangs == "see_through"))
    under = _shorten(path[inner], np.full(int(inner.sum()), 0.82, np.float32), 19)
    under -= 0.35 * _frames(under)[0]
    filler = Strands(
        under,
        shell[inner] * 0.4,
        _tone(hair, under, streaked[inner], rng),
        np.full(len(under), 0.85, np.float32),
        6 if mens else 9,
        filler=True,
    )
    return [filler, main]


def _nearest(points: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """Index of the nearest root for each point."""
    square = dot(roots, roots)[None] - 2 * np.einsum("ni,gi->ng", points, roots)
    return square.argmin(1)


def _shorten(points: np.ndarray, share: np.ndarray, count: int | None = None) -> np.ndarray:
    """Strands cut to a share of their length, with `count` points (as many as before)."""
    return _resample(points, (share * (points.shape[1] - 1)).astype(np.float32), count or points.shape[1])


def _streaks(roots: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which guides carry the second colour of two-tone hair: broad panels round the head. float32 (g,) 0 or 1."""
    turn = np.arctan2(roots[:, 0], roots[:, 2])
    waves = np.sin(5 * turn + rng.uniform(0, 6)) + 0.6 * np.sin(9 * turn + rng.uniform(0, 6))
    return (waves + rng.normal(0, 0.25, len(roots)) > 0.55).astype(np.float32)


def _tone(hair: Hair, points: np.ndarray, streaked: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """0 root colour .. 1 second colour for each point (n, k); `streaked` (n,) marks strands of two-tone hair."""
    n, k = points.shape[:2]
    along = np.linspace(0, 1, k, dtype=np.float32)[None]
    if hair.color == "ombre":
        start = {"mens": 8.5, "womens_short": 4.0, "bob": 0.0, "medium": -3.5, "long": -9.0}[hair.length]
        return np.clip((start - points[..., 1]) / 7 + 0.1, 0, 1).astype(np.float32)
    if hair.color == "two_tone":
        return (streaked[:, None] * np.clip(along * 8, 0, 1)).astype(np.float32)
    return (along * 0.7 + rng.uniform(0, 0.3, n)[:, None]).astype(np.float32)
