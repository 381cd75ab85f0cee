"""Backoff: how long to wait before retrying a failure."""


def backoff_seconds(
    num_failures: int, base_seconds: float, max_seconds: float, chance: float = 1.0
) -> float:
    """Seconds to wait after the nth failure in a row: doubled for each, up to the maximum.

    chance: in [0, 1]. If it is drawn for each retry, the wait is between half of the full one and
            all of it, so that tasks that failed together do not return together
    """
    # Bounded first, since 2.0 to a large power would overflow in a long outage.
    doublings = min(num_failures - 1, 64)
    return min(max_seconds, base_seconds * 2.0**doublings) * (0.5 + chance / 2)
