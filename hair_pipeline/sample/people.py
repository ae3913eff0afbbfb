"""Who stands before the camera: people with hair attributes, clothes and room, and the views of them.

Belongs here: the sampling of everything that is not drawn yet. Does not belong here: pictures (`render`) and the
Korean label values (`labels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hair_pipeline.sample.identity import PARAMETERS, sample_identities
from hair_pipeline.vocabulary import CURL_CLASS, HAS_BANGS

Color = tuple[float, float, float]

_CURLS = {
    "straight": ("none", "none", "J", "C"),
    "wavy": ("CC", "CS", "S", "SC"),
    "curly": ("SS", "S3"),
}
_LENGTHS = ("mens", "womens_short", "bob", "medium", "long")
_COLORS: dict[str, tuple[Color, ...]] = {
    "black": ((30, 27, 28), (38, 34, 36)),
    "natural_brown": ((66, 45, 35), (80, 56, 42)),
    "yellow_brown": ((142, 99, 58), (160, 116, 70)),
    "red_brown": ((112, 48, 32), (128, 52, 30)),
    "ash_brown": ((104, 92, 84), (122, 112, 106)),
    "pink_brown": ((140, 86, 88), (158, 96, 104)),
    "ombre": ((52, 38, 32), (44, 34, 32)),
    "two_tone": ((46, 36, 34), (70, 50, 40)),
    "other": ((214, 184, 132), (72, 84, 132), (120, 70, 120), (196, 198, 204)),
}
_TIPS: tuple[Color, ...] = ((196, 150, 96), (206, 172, 128), (170, 96, 62))
_PREFIXES = ("CP", "AP", "DS", "JS", "MN", "DSS", "JSS")


@dataclass(frozen=True)
class Hair:
    """Hair attributes in the vocabulary's English values, and the numbers that drive the strands."""

    curl: str
    length: str
    bangs: str
    parting: str  # "none" or "3:7"
    color: str
    width: str  # thick, medium, thin
    rgb: Color  # root colour, sRGB 0-255
    rgb_tip: Color  # colour of tips (ombre) or streaks (two_tone); elsewhere close to rgb
    volume: float  # 0-1
    shine: float  # 0-1
    front_share: float  # how much long hair falls before the shoulders, 0-1

    @property
    def curl_class(self) -> str:
        return CURL_CLASS[self.curl]

    @property
    def has_bangs(self) -> bool:
        return HAS_BANGS[self.bangs]

    @property
    def parting_x(self) -> float:
        """Where the parting lies, cm from the middle; "1:9" is far to the image's left of a frontal view."""
        return 0.0 if self.parting == "none" else (int(self.parting[0]) - 5) * 0.95


@dataclass(frozen=True)
class Person:
    """One person: the same identity, hair, clothes and room in every view."""

    source: str
    seed: int
    female: bool
    age: int
    identity: np.ndarray  # (len(PARAMETERS),) in [-1, 1]
    hair: Hair
    cloth: Color
    cloth_second: Color
    cloth_kind: str  # plain, stripes, v_neck, shirt
    wall: Color
    accent: Color
    blurred: bool  # the face is blurred in every view that shows it

    @property
    def parameters(self) -> dict[str, float]:
        return dict(zip(PARAMETERS, self.identity.tolist(), strict=True))


@dataclass(frozen=True)
class View:
    """One photo of a person."""

    number: int  # the three digits of the file name
    yaw: float  # degrees, -180..180; positive: the nose points to the image's right
    pitch: float
    roll: float
    scale: float  # px per cm at 512 px
    origin: tuple[float, float]  # px of the head's centre
    light: tuple[float, float, float]  # direction towards the light, camera frame
    seed: int

    @property
    def horizontal(self) -> float:
        """K-Hairstyle's camera azimuth, 0-360 degrees, 0 in front."""
        return round(self.yaw % 360, 1) % 360

    @property
    def front(self) -> bool:
        return abs(self.yaw) <= 20


def _cycle(values: tuple[str, ...], index: int, seed: int, salt: int) -> str:
    """Each value once in every round of len(values) people, in a shuffled order."""
    block, place = divmod(index, len(values))
    return values[int(np.random.default_rng([seed, salt, block]).permutation(len(values))[place])]


def _make_hair(index: int, seed: int, rng: np.random.Generator) -> Hair:
    cells = tuple(f"{curl}/{bangs}" for curl in _CURLS for bangs in ("bangs", "none"))
    curl_class, bang_class = _cycle(cells, index, seed, 1).split("/")
    length = _cycle(_LENGTHS, index, seed, 2)
    color = _cycle(tuple(_COLORS), index, seed, 3)
    curl = str(rng.choice(_CURLS[curl_class]))
    kinds: tuple[str, ...]
    if bang_class == "bangs":
        kinds = ("mens_down", "mens_down", "full") if length == "mens" else ("full", "full", "see_through", "choppy")
    else:
        kinds = ("none", "swept") if length == "mens" else ("none", "none", "swept", "along_face_line")
    bangs = str(rng.choice(kinds))
    if bang_class == "bangs" and rng.random() < 0.6:
        parting = "none"
    else:
        part = int(rng.choice([2, 3, 4, 5, 5, 6, 7, 8]))
        parting = f"{part}:{10 - part}"
    rgb = _COLORS[color][int(rng.integers(len(_COLORS[color])))]
    jitter = rng.normal(0, 4, 3)
    root = tuple(float(np.clip(c + j, 12, 245)) for c, j in zip(rgb, jitter, strict=True))
    if color in ("ombre", "two_tone"):
        tip = _TIPS[int(rng.integers(len(_TIPS)))]
    else:
        tip = (root[0] * 1.1 + 4, root[1] * 1.1 + 3, root[2] * 1.1 + 2)
    return Hair(
        curl=curl,
        length=length,
        bangs=bangs,
        parting=parting,
        color=color,
        width=str(rng.choice(["thick", "medium", "thin"])),
        rgb=(root[0], root[1], root[2]),
        rgb_tip=tip,
        volume=float(rng.uniform(0.15, 1.0)),
        shine=float(rng.uniform(0.35, 1.0)),
        front_share=float(rng.uniform(0.2, 0.9)),
    )


def _soft_color(rng: np.random.Generator, low: float, high: float, saturation: float) -> Color:
    gray = rng.uniform(low, high)
    tint = rng.normal(0, saturation, 3)
    values = np.clip(gray + tint - tint.mean(), 8, 248)
    return float(values[0]), float(values[1]), float(values[2])


def make_people(count: int, seed: int, *, first: int = 0, blurred_share: float = 0.25) -> list[Person]:
    """The people `first` .. `first + count - 1` of the endless, seeded list; a person never depends on `count`.

    Curl class and bangs are balanced in every block of six people, lengths in every five, colours in every nine.
    """
    identities = sample_identities(first + count, seed)
    people = []
    for index in range(first, first + count):
        rng = np.random.default_rng([seed, 5, index])
        hair = _make_hair(index, seed, rng)
        prefix = _PREFIXES[int(rng.integers(len(_PREFIXES)))]
        blurred = int(np.random.default_rng([seed, 9, index // 4]).integers(4)) == index % 4
        people.append(
            Person(
                source=f"{prefix}{100000 + seed % 1000 * 1000 + index * 7 % 1000000:06d}",
                seed=int(rng.integers(2**31)),
                female=hair.length != "mens",
                age=int(rng.integers(19, 58)),
                identity=identities[index],
                hair=hair,
                cloth=_soft_color(rng, 28, 200, 15),
                cloth_second=_soft_color(rng, 30, 225, 12),
                cloth_kind=str(rng.choice(["plain", "plain", "stripes", "v_neck", "shirt"])),
                wall=_soft_color(rng, 145, 222, 5),
                accent=_soft_color(rng, 60, 205, 13),
                blurred=blurred and blurred_share > 0,
            )
        )
    return people


def with_other_hair(person: Person, index: int, seed: int) -> Person:
    """The same person after a visit to the hairdresser: hairstyle number `index` of the seeded list, grown anew."""
    rng = np.random.default_rng([seed, 11, index])
    return replace(person, hair=_make_hair(index, seed + 1, rng), seed=int(rng.integers(2**31)))


_VIEW_RANGES = (
    (-10, 10),  # front
    (28, 42),  # three-quarter
    (162, 198),  # back
    (78, 90),  # profile
    (10, 24),
    (118, 150),
    (44, 64),
    (-10, 10),
)


FRONT = ((-14, 14),)
FACING = ((0, 15), (15, 30), (30, 45))
"""Ranges of the camera's azimuth for `make_views`, degrees to either side of the nose."""


def make_views(person: Person, count: int, ranges: Sequence[tuple[int, int]] | None = None) -> list[View]:
    """`count` views: always a front, a three-quarter and a back view, then others; or from `ranges` by turns."""
    rng = np.random.default_rng([person.seed, 3])
    order = [0, 1, 2, *([3, 4, 5, 6, 7][int(i)] for i in rng.permutation(5))]
    ranges = ranges or [_VIEW_RANGES[place] for place in order]
    views = []
    for index in range(count):
        low, high = ranges[index % len(ranges)]
        yaw = float(rng.uniform(low, high)) * (1 if rng.random() < 0.5 else -1)
        yaw = (yaw + 180) % 360 - 180
        tight = person.hair.length in ("mens", "womens_short", "bob")
        scale = float(rng.uniform(10.4, 11.4) if tight else rng.uniform(9.6, 10.6))
        side = rng.choice([-1.0, 1.0])
        light = np.array([side * rng.uniform(0.25, 0.8), rng.uniform(0.35, 0.75), rng.uniform(0.7, 1.0)])
        light /= np.linalg.norm(light)
        views.append(
            View(
                number=1 + index * 7 + int(rng.integers(7)),
                yaw=round(yaw, 2),
                pitch=round(float(rng.normal(2, 2.5)), 2),
                roll=round(float(rng.normal(0, 1.8)), 2),
                scale=round(scale, 3),
                origin=(float(256 + rng.normal(0, 9)), float(scale * 12.3 + rng.uniform(44, 60))),
                light=(float(light[0]), float(light[1]), float(light[2])),
                seed=int(rng.integers(2**31)),
            )
        )
    return views
