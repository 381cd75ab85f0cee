"""Trains each demo model: its tokenizer, its configuration and its examples from the world."""
