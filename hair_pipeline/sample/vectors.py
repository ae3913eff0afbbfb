"""Arithmetic on arrays of three-vectors, without BLAS: the same bytes everywhere and no threads of its own.

Belongs here: dot products, unit vectors, rotations. Does not belong here: what is drawn with them.
"""

from __future__ import annotations

import cv2
import numpy as np


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Products (...) of vectors (..., 3) with (..., 3) or (3,)."""
    result: np.ndarray = np.einsum("...i,i->..." if b.ndim == 1 else "...i,...i->...", a, b)
    return result


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) at length 1 (zero stays near zero)."""
    return vectors / (np.sqrt(dot(vectors, vectors)) + np.float32(1e-6))[..., None]


def turn(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`matrix` (3, 3) applied to each of the points (..., 3), float32."""
    flat = np.ascontiguousarray(points, np.float32).reshape(-1, 1, 3)
    return np.asarray(cv2.transform(flat, matrix)).reshape(points.shape)
