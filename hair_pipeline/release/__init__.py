"""Export, registry, deployment and the serving loader: what happens to a model once it has been judged.

Belongs here: everything between a verdict and the try-on service. Does not belong here: the judging (`evaluation`).
"""
