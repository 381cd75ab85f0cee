"""Masking: what is personal in a job's text stays here, and the model sees placeholders."""
