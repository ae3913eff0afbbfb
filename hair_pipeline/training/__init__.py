"""Training of every network: data, the loop, checkpoints, the trainers and their entry point.

Belongs here: whatever turns processed files into weights. Does not belong here: network definitions (`models`),
loss formulas (`losses`), and when or where a training runs (`orchestration`).
"""
