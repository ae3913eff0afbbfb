"""Who a rendered person is: the visible identity parameters and the embedding training_face would give them.

Belongs here: the identity vector, its sampling and its projection to 512 numbers. Does not belong here: hair,
clothes and light, which never change an identity (`people`), and drawing (`geometry`, `skin`).
"""

from __future__ import annotations

import numpy as np

PARAMETERS = (
    "skin_tone",  # dark to light
    "skin_warmth",  # pinkish to yellowish
    "face_width",
    "jaw_width",
    "face_length",
    "eye_spacing",
    "eye_size",
    "eye_tilt",
    "eye_color",  # brown to light
    "brow_weight",  # thin and fair to thick and dark
    "brow_height",
    "nose_length",
    "nose_width",
    "mouth_width",
    "lip_fullness",
    "lip_color",  # pale to red
    "cheek_color",  # none to rosy
    "chin_shape",  # pointed to square
)
"""Names of the identity vector's entries; each lies in [-1, 1] and is visible in the picture."""

EMBEDDING_DIM = 512
NOISE = 0.30
"""Length of the per-view noise added to the unit embedding: two views of a person then have a cosine near 0.92."""

_PROJECTION_SEEDS = {"InsightFace": 11, "AdaFace": 23}


def sample_identities(count: int, seed: int, candidates: int = 8) -> np.ndarray:
    """Identity vectors that are unlike each other (best of `candidates` uniform draws, one person after the other).

    The first n vectors do not depend on `count`.

    Returns:
        float64 (count, len(PARAMETERS)) in [-1, 1].
    """
    rng = np.random.default_rng([seed, 101])
    chosen = np.empty((count, len(PARAMETERS)))
    units = np.empty_like(chosen)
    for index in range(count):
        draws = rng.uniform(-1, 1, (candidates, len(PARAMETERS)))
        normed = draws / np.linalg.norm(draws, axis=1, keepdims=True)
        nearest = (normed @ units[:index].T).max(axis=1) if index else np.zeros(candidates)
        best = int(nearest.argmin())
        chosen[index], units[index] = draws[best], normed[best]
    return chosen


def projection(model: str) -> np.ndarray:
    """The fixed orthonormal projection of an embedding model ("InsightFace" or "AdaFace").

    Returns:
        float64 (EMBEDDING_DIM, len(PARAMETERS)) with orthonormal columns.
    """
    rng = np.random.default_rng(_PROJECTION_SEEDS[model])
    q, r = np.linalg.qr(rng.standard_normal((EMBEDDING_DIM, len(PARAMETERS))))
    return q * np.sign(np.diag(r))


def embed(identity: np.ndarray, model: str, rng: np.random.Generator, *, blurred: bool = False) -> np.ndarray:
    """The embedding of one view: projected identity plus noise, or mostly a common smear when the face is blurred.

    Returns:
        float32 (512,) of length 1.
    """
    matrix = projection(model)
    vector = matrix @ (identity / np.linalg.norm(identity))
    noise = rng.standard_normal(EMBEDDING_DIM)
    noise *= NOISE / np.linalg.norm(noise)
    if blurred:
        smear = np.random.default_rng(7).standard_normal(EMBEDDING_DIM)
        vector = 0.25 * vector + 0.8 * smear / np.linalg.norm(smear)
    vector = vector + noise
    result: np.ndarray = (vector / np.linalg.norm(vector)).astype(np.float32)
    return result
