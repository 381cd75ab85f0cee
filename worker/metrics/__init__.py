"""Metrics: what a worker counts for Prometheus. If they are off, nothing is counted or loaded."""
