"""Upkeep: retention and pruning, erasure and export of personal data, backups."""
