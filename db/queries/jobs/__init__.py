"""Statements on jobs: submitted, dispatched, claimed, ended, taken up again."""
