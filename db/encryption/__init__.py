"""Encryption of texts at rest: keys, encrypted columns and key rotation."""
