"""SliceSize: how many prompt tokens to read beside decoding sequences. No clock or I/O."""

from __future__ import annotations

FIRST_TOKENS = 32  # before any step was measured
MIN_TOKENS = 8
WEIGHT = 0.2  # of a new step, in the averages


class SliceSize:
    """Learns from step times how many prompt tokens double the time of a decode step."""

    def __init__(self) -> None:
        self.decode_seconds: float | None = None  # of a step that reads no prompt
        self.token_seconds: float | None = None  # that each prompt token adds

    @property
    def num_tokens(self) -> int:
        if self.decode_seconds is None or self.token_seconds is None:
            return FIRST_TOKENS
        return max(MIN_TOKENS, int(self.decode_seconds / max(self.token_seconds, 1e-9)))

    def learn(self, num_prompt_tokens: int, seconds: float) -> None:
        """Record the time of a step in which sequences decoded."""
        if num_prompt_tokens == 0:
            self.decode_seconds = moved(self.decode_seconds, seconds)
        elif self.decode_seconds is not None:
            added = max(seconds - self.decode_seconds, 0.0)
            self.token_seconds = moved(self.token_seconds, added / num_prompt_tokens)


def moved(average: float | None, sample: float) -> float:
    """Return the moving average with one more sample.

    An outlier, such as a step that compiled something, counts as at most twice the average.
    """
    if average is None:
        return sample
    return average + WEIGHT * (min(sample, 2 * average) - average)
