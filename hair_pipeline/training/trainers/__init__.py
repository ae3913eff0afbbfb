"""The trainers: one module per network, each with `run(context) -> Finished`.

Belongs here: what is learnt and from what. Does not belong here: the loop, checkpoints and run folders.
"""
