"""Where a fringe may hang: the forehead, which a new hairstyle may cover or lay bare.

Belongs here: that region. Does not belong here: removal of the hair (`bald`).
"""

from __future__ import annotations

import numpy as np

from hair_pipeline.inputs.hair_rim import BROW


def with_forehead(
    hair_mask: np.ndarray, face_mask: np.ndarray, box: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Hair and face masks for another hairstyle: the forehead down to the brows counts as hair.

    A mask of the present hair alone could neither give a fringe to somebody without one, nor show by its outline that
    none is asked for.

    Args:
        hair_mask, face_mask: (H, W) bool.
        box: x1, y1, x2, y2 of the face in pixels; None leaves the masks as they are.

    Returns:
        The two masks, (H, W) bool.
    """
    if box is None:
        return hair_mask, face_mask
    top, bottom = float(box[1]), float(box[3])
    brow = round(top + BROW * (bottom - top))
    forehead = face_mask.copy()
    forehead[max(0, brow) :] = False
    return hair_mask | forehead, face_mask & ~forehead
