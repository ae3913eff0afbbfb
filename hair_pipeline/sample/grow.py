"""Growing hair: thousands of strands around the guides, with curl, clumps, flyaways and colour along them.

Belongs here: everything between a guide and a strand. Does not belong here: the guides' paths (`guides`) and what a
camera sees (`strands`). All strands of a person are grown once and seen from every view.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hair_pipeline.sample.geometry import Shape
from hair_pipeline.sample.guides import CENTRE, Guides, grow_guides, in_fringe, scalp_roots
from hair_pipeline.sample.people import Hair, Person
from hair_pipeline.sample.vectors import dot, unit

CHUNK = 3
"""Strands have a multiple of this many segments: they are drawn in pieces of it."""


@dataclass(frozen=True)
class Strands:
    """A bundle of strands with the same number of points.

    Attributes:
        points: float32 (n, k, 3), root to tip, head frame, cm; k - 1 is a multiple of CHUNK.
        shell: float32 (n,) 0 near the scalp .. 1 outermost.
        tone: float32 (n, k) 0 root colour .. 1 tip or streak colour.
        bright: float32 (n,) factor of the strand's own brightness.
        thickness: line width of the bundle in pixels at twice the picture's resolution.
        filler: dark mass under the strands; drawn first, without shine.
    """

    points: np.ndarray
    shell: np.ndarray
    tone: np.ndarray
    bright: np.ndarray
    thickness: int
    filler: bool = False


@dataclass(frozen=True)
class _Curl:
    """Shape of a curl: wavelength and radius in cm, how flat (0 coil, 1 plane), where along the strand it begins."""

    wavelength: float
    radius: float
    flat: float
    begins: float
    bend: float = 0.0  # tips bent inwards, cm


_CURLS = {
    "none": _Curl(9.0, 0.06, 0.8, 0.2),
    "J": _Curl(9.0, 0.05, 0.8, 0.2, 1.6),
    "C": _Curl(9.0, 0.06, 0.8, 0.2, 2.6),
    "CC": _Curl(8.0, 1.1, 0.85, 0.1),
    "CS": _Curl(7.2, 1.2, 0.8, 0.08),
    "SC": _Curl(6.6, 1.2, 0.8, 0.06),
    "S": _Curl(5.8, 1.2, 0.75, 0.02),
    "SS": _Curl(3.2, 0.82, 0.25, 0.0),
    "S3": _Curl(2.3, 0.68, 0.1, 0.0),
}
_SHRINK = {"mens": (0.5, 0.55), "womens_short": (0.62, 0.75), "bob": (0.8, 0.9)}
_SHRINK_CURLY = {"mens": (0.66, 0.66), "womens_short": (0.8, 0.8)}
_CLUMP = {"straight": 0.62, "wavy": 0.45, "curly": 0.24}
"""Distance of a clump's strands at their tips, as a share of that at their roots."""
_POINT_BUDGET = 135_000
"""At most about this many strand points per person."""


def _curl_of(hair: Hair) -> _Curl:
    curl = _CURLS[hair.curl]
    table = _SHRINK_CURLY if hair.curl_class == "curly" else _SHRINK
    long, wide = table.get(hair.length, (1.0, 1.0))
    bend = 0.0 if hair.length == "mens" else curl.bend
    return _Curl(curl.wavelength * long, curl.radius * wide, curl.flat, curl.begins, bend)


def _resample(points: np.ndarray, end: np.ndarray, count: int) -> np.ndarray:
    """Each path's part up to `end` (fractional index) at `count` equal steps."""
    at = np.linspace(0, 1, count, dtype=np.float32)[None] * end[:, None].astype(np.float32)
    low = np.minimum(at.astype(int), points.shape[1] - 2)
    part = (at - low).astype(np.float32)[..., None]
    rows = np.arange(len(points))[:, None]
    start = points[rows, low]
    result: np.ndarray = start + (points[rows, low + 1] - start) * part
    return result


def _frames(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outward and sideways unit vectors across each path, both (g, n, 3)."""
    tangent = unit(np.gradient(points, axis=1))
    out: np.ndarray = points - CENTRE
    out[..., 1] *= np.clip((points[..., 1] + 2) / 8, 0, 1)
    out = unit(out - tangent * dot(out, tangent)[..., None])
    return out, np.cross(tangent, out)


def _nearest(points: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """Index of the nearest root for each point."""
    square = dot(roots, roots)[None] - 2 * np.einsum("ni,gi->ng", points, roots)
    return square.argmin(1)


def _streaks(roots: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which guides carry the second colour of two-tone hair: broad panels round the head. float32 (g,) 0 or 1."""
    angle = np.arctan2(roots[:, 0], roots[:, 2])
    waves = np.sin(5 * angle + rng.uniform(0, 6)) + 0.6 * np.sin(9 * angle + rng.uniform(0, 6))
    return (waves + rng.normal(0, 0.25, len(roots)) > 0.55).astype(np.float32)


def _tone(hair: Hair, points: np.ndarray, streaked: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """0 root colour .. 1 second colour for each point (n, k); `streaked` (n,) marks strands of two-tone hair."""
    count = points.shape[1]
    along: np.ndarray = np.linspace(0, 1, count)[None]
    if hair.color == "ombre":
        start = {"mens": 8.5, "womens_short": 4.0, "bob": 0.0, "medium": -3.5, "long": -9.0}[hair.length]
        ragged = rng.normal(0, 1.2, (len(points), 1))
        return np.clip((start + ragged - points[..., 1]) / 7 + 0.1, 0, 1).astype(np.float32)
    if hair.color == "two_tone":
        return (streaked[:, None] * np.clip(along * 8, 0, 1)).astype(np.float32)
    return (along * 0.7 + rng.uniform(0, 0.3, (len(points), 1))).astype(np.float32)


class _Locks:
    """What the strands of one person have in common: the guides' phases, curl size, colour and brightness."""

    def __init__(self, hair: Hair, guides: Guides, rng: np.random.Generator) -> None:
        self.hair, self.guides, self.rng, self.curl = hair, guides, rng, _curl_of(hair)
        g = len(guides.roots)
        if hair.curl_class == "curly":
            self.phase, self.stretch = rng.uniform(0, 2 * np.pi, g), rng.uniform(0.85, 1.18, g)
        else:  # neighbouring locks swing together
            turning = np.sin(2 * np.arctan2(guides.roots[:, 0], guides.roots[:, 2]))
            self.phase, self.stretch = rng.normal(0, 0.5, g) + turning * 0.8, rng.uniform(0.95, 1.06, g)
        self.size = self.curl.radius * rng.uniform(0.8, 1.2, g)
        self.bright = np.clip(rng.normal(1, 0.2 if hair.curl_class == "curly" else 0.11, g), 0.6, 1.5)
        self.streaked = _streaks(guides.roots, rng)

    def points_needed(self, members: np.ndarray) -> int:
        """Points per strand for smooth curls of the guides `members` (bool (g,))."""
        typical = float(np.percentile(self.guides.end[members], 85)) * self.guides.stride
        per_wave = 7.5 if self.hair.curl_class == "curly" else 5.0
        fine = int(np.clip(typical / self.curl.wavelength * per_wave, 15, 75))
        return fine // CHUNK * CHUNK + 1

    def follow(self, guide: np.ndarray, offset: np.ndarray, count: int, jitter: float) -> np.ndarray:
        """Curled strands float32 (n, count, 3) along the guides `guide` (n,), rooted `offset` (n, 3) beside them."""
        hair, curl, rng = self.hair, self.curl, self.rng
        used, guide_row = np.unique(guide, return_inverse=True)
        path = _resample(self.guides.points[used], self.guides.end[used], count)
        out, across = _frames(path)
        t = np.linspace(0, 1, count, dtype=np.float32)
        spread = 1 + (_CLUMP[hair.curl_class] - 1) * np.clip(t * 1.6, 0, 1)
        points = path[guide_row] + offset[:, None] * spread[None, :, None]
        length = (self.guides.end[guide] * self.guides.stride).astype(np.float32)[:, None]
        arc = length * t[None]
        phase = self.phase[guide] + rng.normal(0, jitter, len(guide))
        angle = (2 * np.pi / curl.wavelength * self.stretch[guide])[:, None].astype(np.float32) * arc
        angle += phase[:, None].astype(np.float32)
        grown = np.clip((t[None] - curl.begins) / 0.3, 0, 1) * np.clip(arc / 2.5, 0, 1)
        held = {"straight": 1.0, "wavy": 0.6, "curly": 0.8}[hair.curl_class]
        size = (self.size[guide] * np.where(self.guides.fringe[guide], held, 1.0)).astype(np.float32)[:, None] * grown
        sway, rise = size * np.sin(angle), size * (1 - curl.flat) * (1 + np.cos(angle))
        points += across[guide_row] * sway[..., None] + out[guide_row] * rise[..., None]
        if curl.bend:
            inward = np.stack([-points[..., 0], np.zeros_like(points[..., 0]), -(points[..., 2] + 2)], -1)
            amount = curl.bend * np.where(self.guides.fringe[guide], 0.15, 1.0)
            points += unit(inward) * (amount[:, None] * np.clip((arc - length + 6) / 6, 0, 1) ** 2)[..., None]
        return points.astype(np.float32)

    def bundle(self, roots: np.ndarray, guide: np.ndarray, count: int) -> Strands:
        """Strands rooted at `roots` (n, 3), each following its guide, with frizz, flyaways and uneven ends."""
        hair, rng, n = self.hair, self.rng, len(roots)
        jitter = 0.3 if hair.curl_class == "curly" else 0.18
        points = self.follow(guide, roots - self.guides.roots[guide], count, jitter)
        loose = rng.random(n) < 0.05
        wild = rng.normal(0, 1, (n, 3)) * np.where(loose, 1.1, 0.16)[:, None] * (0.5 if hair.length == "mens" else 1.0)
        t = np.linspace(0, 1, count, dtype=np.float32)
        points += (wild[:, None] * (t**1.5)[None, :, None]).astype(np.float32)
        share = rng.beta(14, 0.9, n) if hair.length == "bob" else rng.beta(6, 1.1, n)
        points = _resample(points, share * (count - 1), count)
        bright = np.where(loose, 1.05, self.bright[guide] * rng.normal(1, 0.11, n))
        shell = np.clip(self.guides.shell[guide] * 0.75 + rng.uniform(0, 0.35, n), 0, 1)
        return Strands(
            points,
            shell.astype(np.float32),
            _tone(hair, points, self.streaked[guide], rng),
            np.clip(bright, 0.55, 1.6).astype(np.float32),
            1,
        )

    def filler(self, count: int) -> Strands:
        """Thick dark locks under the strands, so that no scalp or room shines through."""
        hair = self.hair
        inner = np.flatnonzero((self.guides.shell < 0.7) & ~self.guides.fringe)
        points = self.follow(inner, np.zeros((len(inner), 3), np.float32), count, 0.0)
        points = _resample(points, np.full(len(inner), 0.8 * (count - 1)), count)
        points -= 0.35 * unit(points - CENTRE)
        return Strands(
            points,
            np.full(len(inner), 0.45, np.float32),
            _tone(hair, points, self.streaked[inner], self.rng),
            (self.bright[inner] * 0.9).astype(np.float32),
            6 if hair.length == "mens" else 8,
            filler=True,
        )


def grow(person: Person, shape: Shape) -> list[Strands]:
    """All of a person's hair, ready to be drawn from any side: filler, hair, bangs."""
    hair = person.hair
    rng = np.random.default_rng([person.seed, 21])
    guides = grow_guides(person, shape, 520 if hair.length == "mens" else 430, rng)
    locks = _Locks(hair, guides, rng)
    count = locks.points_needed(~guides.fringe)
    total = {"thick": 6000, "medium": 5100, "thin": 4200}[hair.width]
    budget = _POINT_BUDGET * total / 5100
    roots = scalp_roots(shape, int(min(total, budget / count)), rng)
    if not hair.has_bangs:
        return [locks.filler(count), locks.bundle(roots, _nearest(roots, guides.roots), count)]
    rest = roots[~in_fringe(roots)]
    others, bangs = np.flatnonzero(~guides.fringe), np.flatnonzero(guides.fringe)
    tips = scalp_roots(shape, total if hair.bangs != "see_through" else int(total * 0.62), rng)
    tips = tips[in_fringe(tips)]
    return [
        locks.filler(count),
        locks.bundle(rest, others[_nearest(rest, guides.roots[others])], count),
        locks.bundle(tips, bangs[_nearest(tips, guides.roots[bangs])], locks.points_needed(guides.fringe)),
    ]
