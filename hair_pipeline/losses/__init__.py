"""The losses of the specification, one module each, and what they share: schedules, conversions of predictions.

Belongs here: differentiable functions of tensors that return one scalar (or None without a valid sample).
Does not belong here: networks (`models`), which losses are switched on and how they are summed (`training`).
"""
