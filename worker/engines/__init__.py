"""Engines: the processes that run models, as the worker manages them."""
