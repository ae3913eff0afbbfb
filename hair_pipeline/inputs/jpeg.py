"""Whether a JPEG that has its end marker still lacks part of its pixels' data.

Belongs here: signs of lost data that no whole JPEG shows, flat pictures included. Does not belong here: the end marker
(`files.is_whole_jpeg`) and what becomes of a broken image (`k_hairstyle`).
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

_SMALL = 64
"""Pixels that a small image keeps at least per side, as the perceptual hash needs them."""
_FILL = 128
"""The gray that libjpeg gives to the pixels it finds no data for."""
_MIN_LOST = 16
"""Data are looked for where at least one row in so many, at the bottom, has that gray."""
_HOLE = bytes(64)
_NOISE = bytes(value for value in np.random.default_rng(0).bytes(4096) if value != 0xFF)
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SEQUENTIAL = (0xC0, 0xC1)


def small_gray(image: Image.Image) -> np.ndarray:
    """An image as gray (h, w) uint8; a JPEG decoded at down to an eighth of its size. Raises as Pillow does."""
    width, height = image.size
    if image.format in ("JPEG", "MPO"):
        image.draft("L", (max(_SMALL, width // 8), max(_SMALL, height // 8)))
    return np.asarray(image.convert("L"))


def lost_data(data: bytes, small: np.ndarray) -> str:
    """The sign that data of a JPEG are gone; empty where there is none.

    Two signs are looked for. The data end before the pixels do: the bottom has the gray of the decoder, and decodes to
    something else when more data follow. Or zeros stand in the data for what was lost. Neither is sure to be found:
    noise in place of data, and holes in progressive JPEGs or where the code tables make zeros of flat surfaces.

    Args:
        data: of a JPEG with an end marker.
        small: what `small_gray` makes of it.
    """
    scan = _first_scan(data)
    if scan is None:
        return ""
    if scan.sequential and not scan.zeros_are_flat and data.find(_HOLE, scan.start, scan.end) >= 0:
        return "zeros stand in the place of data"
    is_last = data.startswith(b"\xff\xd9", scan.end)
    if is_last and (small[-max(1, len(small) // _MIN_LOST) :] == _FILL).all():
        with Image.open(io.BytesIO(data[: scan.end] + _NOISE + data[scan.end :]), formats=("JPEG",)) as longer:
            if not np.array_equal(small_gray(longer), small):
                return "its data end before its pixels"
    return ""


@dataclass(frozen=True)
class _Scan:
    """The first run of pixel data in a JPEG.

    Attributes:
        start, end: where the data start, and the marker behind them.
        sequential: are the pixels coded once, from top to bottom?
        zeros_are_flat: may a flat surface be coded as zeros alone? Else zeros would be blocks in which every frequency
            is there at the same strength, which no picture has.
    """

    start: int
    end: int
    sequential: bool
    zeros_are_flat: bool


def _first_scan(data: bytes) -> _Scan | None:
    """None where the segments before it are damaged."""
    first_symbols: dict[int, int] = {}
    sequential = False
    place = 2
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
            continue
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        segment = data[place + 4 : end]
        sequential |= marker in _SEQUENTIAL
        if marker == 0xC4:
            first_symbols |= _first_symbols(segment)
        if marker == 0xDA:
            behind = _MARKER.search(data, end)
            if behind is None or len(segment) < 3:
                return None
            symbol = first_symbols.get(0x10 | segment[2] & 0x0F, 0)
            return _Scan(end, behind.start(), sequential, symbol & 0x0F == 0)
        place = end
    return None


def _first_symbols(segment: bytes) -> dict[int, int]:
    """Class and number of each Huffman table in a segment -> the symbol whose code is all zeros."""
    symbols: dict[int, int] = {}
    place = 0
    while place + 17 < len(segment):
        symbols[segment[place]] = segment[place + 17]
        place += 17 + sum(segment[place + 1 : place + 17])
    return symbols
