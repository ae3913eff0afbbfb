"""The catalog's columns and their types.

Belongs here: names and Arrow types. Does not belong here: how the values are found (`examine`, `catalog`).
"""

from __future__ import annotations

import pyarrow as pa

from hair_pipeline.vocabulary import ATTRIBUTES

_TEXT, _FLAG, _NUMBER, _WHOLE = pa.string(), pa.bool_(), pa.float64(), pa.int32()
EXAMINED = pa.schema(
    {
        "image_id": _TEXT,
        "source": _TEXT,
        "accepted": _FLAG,
        "reason": _TEXT,
        "detail": _TEXT,
        "image_path": _TEXT,
        "label_path": _TEXT,
        "width": _WHOLE,
        "height": _WHOLE,
        **dict.fromkeys(ATTRIBUTES, _TEXT),
        "curl_class": _TEXT,
        "has_bangs": _FLAG,
        "front": _FLAG,
        "horizontal": _NUMBER,
        "age": _WHOLE,
        "rgb": pa.list_(pa.float64()),
        "label_problems": _TEXT,
        "mask_origin": _TEXT,
        "hair_fraction": _NUMBER,
        "mask_iou": _NUMBER,
        "masks_disagree": _FLAG,
        "face_blurred": _FLAG,
        "has_face": _FLAG,
        "faces_found": _WHOLE,
        "face_id": _WHOLE,
        "face_path": _TEXT,
        "sheet_path": _TEXT,
        "embedding_path": _TEXT,
        "face_reason": _TEXT,
        "face_detail": _TEXT,
        **dict.fromkeys(("box_x1", "box_y1", "box_x2", "box_y2"), _NUMBER),
        **dict.fromkeys(("yaw", "pitch", "roll", "face_confidence"), _NUMBER),
        "embedding_model": _TEXT,
        "identity_reliable": _FLAG,
        "identity_reason": _TEXT,
        "stage2": _FLAG,
        "stage2_reason": _TEXT,
        "scale": _NUMBER,
        "offset_x": _WHOLE,
        "offset_y": _WHOLE,
        "largest_path": _TEXT,
        "largest_label_path": _TEXT,
        "largest_width": _WHOLE,
        "largest_height": _WHOLE,
        "perceptual_hash": _TEXT,
        "content_hash": _TEXT,
    }
)
"""What examining an image and its files alone can tell. Paths are relative to k_hairstyle_root (image, label, largest)
and training_face_root (the others); `a.zip!/b.jpg` leads into an archive."""

SCHEMA = EXAMINED.append(pa.field("shard", _TEXT)).append(pa.field("split", _TEXT))
"""The catalog's columns."""

ALWAYS_FLAGS = ("accepted", "has_face", "identity_reliable", "stage2", "face_blurred")
"""Flags that are never null."""
NO_FLAGS = dict.fromkeys(ALWAYS_FLAGS, False)
