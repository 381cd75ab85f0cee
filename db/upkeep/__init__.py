"""Upkeep: retention, erasure of what a person gave, backups."""
