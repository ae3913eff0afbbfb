"""Metrics, their confidence intervals, the validation report and the A/B test.

Belongs here: what is measured on finished pictures, and the rule that turns measurements into a verdict.
Does not belong here: training losses (`losses`), and what is done with a verdict (`release`).
"""
