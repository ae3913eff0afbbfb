"""The networks: diffusion base and adapters, inference pipeline, encoders, classifiers, recogniser, perceptual nets.

Belongs here: architectures, loading and saving of weights, the sampling loop.
Does not belong here: losses (`losses`), optimisation (`training`), metrics (`evaluation`).
"""
