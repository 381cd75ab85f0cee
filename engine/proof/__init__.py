"""The proof of a checkpoint at load: whether it answers in flight as it does alone."""
