"""Packed rows come back as they were, whatever the images' bytes hold."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hair_pipeline.processing.patch_rows import PATCH_SCHEMA, as_table, pack, unpack
from hair_pipeline.processing.patches import ZONES, Patch

PATCHES = st.builds(
    Patch,
    size=st.integers(1, 256),
    x=st.integers(0, 10_000),
    y=st.integers(0, 10_000),
    zone=st.sampled_from(ZONES),
    image=st.just(np.zeros((1, 1, 3), np.uint8)),
)
ROWS = st.lists(st.tuples(PATCHES, st.binary(max_size=40)), max_size=5)
PHOTO = st.fixed_dictionaries(
    {
        "image_id": st.text(),
        "person": st.none() | st.text(),
        "curl": st.none() | st.text(),
        "curl_class": st.none() | st.text(),
        "scale": st.floats(0.125, 16, width=32),
        "photo": st.text(),
    }
)


@given(PHOTO, ROWS)
def test_a_round_trip(photo, rows):
    patches, images = [patch for patch, _ in rows], [image for _, image in rows]
    blob = pack(photo, patches, images)
    columns = unpack(blob)
    assert set(columns) == set(PATCH_SCHEMA.names)
    assert columns["image"] == images
    assert [columns[name] for name in photo] == [[value] * len(rows) for value in photo.values()]
    assert columns["zone"] == [patch.zone for patch in patches]
    table = as_table([blob, blob])
    assert table.schema == PATCH_SCHEMA
    assert len(table) == 2 * len(rows)
    assert table["x"].to_pylist() == [patch.x for patch in patches] * 2
