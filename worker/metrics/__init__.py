"""Metrics: what a worker counts, and how Prometheus reads it. Off, nothing is counted or loaded."""
