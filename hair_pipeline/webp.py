"""Lossless WebP of pictures that are mostly empty: only the part that holds something is coded.

Belongs here: the WebP container around libwebp's bitstream. Does not belong here: reading (OpenCV and Pillow do).
"""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
from PIL import Image

_ANIMATED, _ALPHA, _NO_BLENDING = 0x02, 0x10, 0x02


def encode_webp(image: np.ndarray) -> bytes:
    """Encode (H, W, 3 or 4) uint8 losslessly, RGB under alpha 0 included; it decodes to the same H x W.

    libwebp's fastest method is ten times as fast as the next one, but spends four bits on every empty pixel. So an
    RGBA picture's empty margin is not handed to it: the rest stands as the one frame of an extended WebP file
    (developers.google.com/speed/webp/docs/riff_container), at its place on a canvas of H x W that starts out as zeros.
    """
    if image.shape[2] == 3:
        return _encode(image)
    height, width = image.shape[:2]
    filled = (np.ascontiguousarray(image).view(np.uint32)[..., 0] != 0).view(np.uint8)
    left, top, across, down = cv2.boundingRect(filled)
    if (across, down) == (0, 0) or (across, down) == (width, height):
        return _encode(image)
    right, bottom = left + across, top + down
    left, top = left - left % 2, top - top % 2  # the container counts offsets in steps of two pixels
    bitstream = _lossless_chunk(_encode(image[top:bottom, left:right]))
    place = _uint24(left // 2) + _uint24(top // 2) + _uint24(right - left - 1) + _uint24(bottom - top - 1)
    body = (
        b"WEBP"
        + _chunk(b"VP8X", bytes([_ANIMATED | _ALPHA, 0, 0, 0]) + _uint24(width - 1) + _uint24(height - 1))
        + _chunk(b"ANIM", bytes(4) + b"\x01\x00")
        + _chunk(b"ANMF", place + _uint24(0) + bytes([_NO_BLENDING]) + bitstream)
    )
    return _chunk(b"RIFF", body)


def _encode(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "WEBP", lossless=True, exact=True, quality=0, method=0)
    return buffer.getvalue()


def _lossless_chunk(data: bytes) -> bytes:
    """The VP8L chunk, with its header, of a WebP file."""
    at = 12
    while data[at : at + 4] != b"VP8L":
        at += 8 + _padded(struct.unpack_from("<I", data, at + 4)[0])
    return data[at : at + 8 + _padded(struct.unpack_from("<I", data, at + 4)[0])]


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def _padded(size: int) -> int:
    return size + size % 2


def _uint24(value: int) -> bytes:
    return struct.pack("<I", value)[:3]
