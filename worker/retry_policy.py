"""Whether a failed attempt is followed by another, and when."""

MAX_DELAY_SECONDS = 600.0


def delay_seconds(num_failures: int, base_seconds: float, chance: float) -> float:
    """How long a job waits after its nth failure: doubling, with jitter.

    chance is in [0, 1); the delay lies between half of the full wait and all of
    it, so that jobs that failed together do not come back together.
    """
    full = min(MAX_DELAY_SECONDS, base_seconds * 2.0 ** (num_failures - 1))
    return full * (0.5 + chance / 2)
