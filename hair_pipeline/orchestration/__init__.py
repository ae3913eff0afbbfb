"""Dagster and nothing else: assets, checks, partitions, resources, executors, and launching the lineage.

An asset here is thin: read the settings, call one function of a lower floor, return a result. Logic about hair,
models or metrics does not belong here, and no module imports torch when it is loaded.
"""

import warnings

from dagster import BetaWarning, PreviewWarning

# Observable source assets, backfill policies and parts of Pipes are marked beta or preview in Dagster; the tests cover
# what is used of them.
for category in (BetaWarning, PreviewWarning):
    warnings.filterwarnings("ignore", category=category)
