"""Commands that enqueue, cancel and retry jobs."""
