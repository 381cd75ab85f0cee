"""Attention to cached keys and values, plugged into the models of transformers."""
