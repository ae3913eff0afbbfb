"""The straightforward way to prepare the images: one after another, each library call as its tutorial shows it.

Telea with radius 5 at full size, PNG by default settings, patches by trying every window position. What
`benchmarks/preparation.py` is compared with.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIZES = (128, 64)
PER_IMAGE = 8
STRIDE = 8


def prepare(image_path: Path, label_path: Path, out: Path) -> np.ndarray:
    """Write the bald image, the hair-only image and the patches of one photo; returns the bald image, BGR."""
    image: Any = cv2.imread(str(image_path))
    label = json.loads(label_path.read_text(encoding="utf-8"))
    mask: Any = np.zeros(image.shape[:2], np.uint8)
    rings = [np.array([[p["x"], p["y"]] for p in ring], np.float32) for ring in json.loads(label["polygon1"])]
    cv2.fillPoly(mask, [np.round(ring).astype(np.int32) for ring in rings], 255)

    grown = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (19, 19)))
    bald = cv2.inpaint(image, grown, 5, cv2.INPAINT_TELEA)
    cv2.imwrite(str(out / f"{image_path.stem}_bald.png"), bald)

    hair = np.dstack([image, mask])
    hair[mask == 0] = 0
    cv2.imwrite(str(out / f"{image_path.stem}_hair.png"), hair)

    for size in SIZES:
        windows = [
            (x, y)
            for y in range(0, mask.shape[0] - size + 1, STRIDE)
            for x in range(0, mask.shape[1] - size + 1, STRIDE)
            if mask[y : y + size, x : x + size].all()
        ]
        for number, (x, y) in enumerate(random.sample(windows, min(PER_IMAGE, len(windows)))):
            cv2.imwrite(str(out / f"{image_path.stem}_patch{size}_{number}.png"), image[y : y + size, x : x + size])
    return bald
