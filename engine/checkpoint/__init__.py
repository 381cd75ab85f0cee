"""Checkpoints: read and refused, their weights laid out, their text part found."""
