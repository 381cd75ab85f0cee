"""Runs a step of a whole decoder or encoder as one table of compiled calls."""
