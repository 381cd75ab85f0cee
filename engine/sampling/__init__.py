"""From logits to tokens: parameters, logits processors, sampler, beam search."""
