"""Rendered sample inputs: people with hair, written in both real input formats.

Belongs here: the renderer and the writer of K-Hairstyle's and training_face's files. Does not belong here: readers
of those formats (`inputs`) and anything that trains on them.
"""
