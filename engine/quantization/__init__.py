"""Quantized checkpoints: unpacks their weights to floats, for machines without kernels for them."""
