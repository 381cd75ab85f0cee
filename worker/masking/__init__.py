"""Masking: replaces personal data in a job's text by placeholders before the model sees it."""
