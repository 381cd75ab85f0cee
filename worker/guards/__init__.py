"""Guards: detect suspicious answers, and retry, flag or fail them."""
