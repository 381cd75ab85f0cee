"""StopText: where an answer ends because of a text that the job named."""

from __future__ import annotations

from collections.abc import Iterable


def stop_position(text: str, stops: Iterable[str]) -> int | None:
    """Where the first stop text in `text` begins; None if there is none."""
    positions = [position for stop in stops if (position := text.find(stop)) >= 0]
    return min(positions, default=None)


def cut_at_stop(text: str, stops: Iterable[str]) -> str:
    """`text` up to its first stop text."""
    position = stop_position(text, stops)
    return text if position is None else text[:position]
