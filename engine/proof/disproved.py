"""Disproved: what a proof raises."""


class Disproved(Exception):
    """An answer in flight differs from that of `generate`; the message says how."""
