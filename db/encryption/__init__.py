"""Encryption of texts at rest: the keys, the columns that are sealed, and the change of keys."""
