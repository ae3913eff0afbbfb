"""One module per family of metrics; `definitions` lists them all with units, direction and source.

Belongs here: functions from pictures (and frozen judge networks) to one number per image or per set.
Does not belong here: intervals over people (`statistics`), loading of the judges (`judges`).
"""
