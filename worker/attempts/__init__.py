"""Attempts: one run of one job, the dialogue before it and its spans."""
