"""Readers of the two inputs (K-Hairstyle, training_face), and the catalog, split and shards made from them.

Belongs here: everything that knows the inputs' file formats. Does not belong here: new images or masks made from
them (`processing`), and anything that writes into an input folder.
"""
