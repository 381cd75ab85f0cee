"""Formats: the files, folders and queries that a source can be."""
