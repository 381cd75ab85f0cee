"""The model's own cache: rows are joined for a pass and separated afterwards."""
