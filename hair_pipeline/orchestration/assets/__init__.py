"""Assets, one module per group. An asset is thin: settings in, one function of a lower floor, a result out.

Belongs here: an asset's inputs, description, marks and metadata. Does not belong here: the work, and what a step does
around it (`training_step`, `trainer`).

These modules do without `from __future__ import annotations`: Dagster reads the real type of `context`.
"""
