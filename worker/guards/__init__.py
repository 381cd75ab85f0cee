"""Guards: what is suspicious in an answer, and what is done about it."""
