"""Disproved: the error of a failed proof."""


class Disproved(Exception):
    """An answer in flight differs from that of `generate`; the message says how."""
