"""The worker: pulls jobs, batches them through a model and writes each result once.

Nothing is imported here: `engine` runs in a process of its own and must
not load the rest, and the rest must not load torch.
"""
