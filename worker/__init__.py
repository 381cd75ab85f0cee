"""The worker: pulls jobs, batches them through a model and writes each result once.

Nothing is imported here: an engine process must not load the rest of this package, and the rest
must not load torch.
"""
