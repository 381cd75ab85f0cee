"""Publishes what the database says is due; one dispatcher among the workers leads."""
