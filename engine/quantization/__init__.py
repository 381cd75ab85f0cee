"""Quantized checkpoints: their packed numbers as floats, for machines without kernels for them."""
