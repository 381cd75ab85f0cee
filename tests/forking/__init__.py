"""Forks the programs of tests from a process that has already imported their modules."""
