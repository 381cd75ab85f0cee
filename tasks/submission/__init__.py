"""Submission: turns contracts into rows, one by one, in batches, or by message."""
