"""Submission: contracts become rows, one by one, in batches, or by message."""
