"""Contracts: the fields that every task has, and those that several share."""
