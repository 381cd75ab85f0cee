"""Compiled code for a CPU; each part has a plain torch counterpart. See README.md."""
