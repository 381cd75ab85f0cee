"""Compiled code for CPUs; each part has a plain torch counterpart. See README.md."""
