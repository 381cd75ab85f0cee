"""Logits to tokens: parameters, logits processors, sampler, beam search."""
