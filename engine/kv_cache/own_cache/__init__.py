"""The model's own cache: rows that are joined for a pass, and parted after it."""
