"""Attention over cached keys and values, plugged into the models of transformers."""
