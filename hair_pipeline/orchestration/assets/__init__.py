"""Assets, one module per group. An asset is thin: settings in, one function of a lower floor, a result out.

These modules do without `from __future__ import annotations`: Dagster reads the real type of `context`.
"""
