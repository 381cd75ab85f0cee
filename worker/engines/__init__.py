"""Engines: the processes that run the models, seen from the worker."""
