"""Images cut into parts: bald images, hair-only images, patches, and pasting results back. NumPy and OpenCV only.

Belongs here: geometry, masks, filling, cutting, compositing, and the per-shard functions that write the results.
Does not belong here: reading of the input formats (`inputs`) and anything with torch (`models` and above).
"""
