"""Statements on jobs, from submission to completion."""
