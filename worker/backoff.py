"""Backoff: how long to wait before the next try of something that has failed."""


def backoff_seconds(
    num_failures: int, base_seconds: float, max_seconds: float, chance: float = 1.0
) -> float:
    """Seconds after the nth failure in a row: the base, doubled with each, at most the maximum.

    chance: in [0, 1]; with one drawn for each try the wait lies between half of the full one
    and all of it, so that what failed together does not come back together.
    """
    # Bounded before the power: a float has an end, and an outage may have none.
    doublings = min(num_failures - 1, 64)
    return min(max_seconds, base_seconds * 2.0**doublings) * (0.5 + chance / 2)
