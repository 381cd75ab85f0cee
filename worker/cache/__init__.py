"""Caches of model outputs: those of earlier attempts, and those of equal requests."""
