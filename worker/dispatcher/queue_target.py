"""QueueTarget: how many jobs of a model may be out, and how soon more are needed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueueTarget:
    """The target of one model's bulk queue, and its state at a poll.

    Twice as many jobs may be out as the workers want at hand.
    """

    num_wanted: int  # by the live workers, at hand
    num_out: int  # published or running

    @property
    def max_out(self) -> int:
        return 2 * self.num_wanted

    @property
    def num_missing(self) -> int:
        return self.max_out - self.num_out

    def seconds_until_needed(self, num_published: int, filled_seconds: float) -> float:
        """Seconds until half of the waiting jobs are taken, at the pace since the last refill.

        The other half is a reserve for a rising pace. 0 if the queue had drained: this poll came
        too late, and it is unknown how late.

        num_published:  the number of jobs that this poll publishes
        filled_seconds: the time since the last refill
        """
        if self.num_out < self.num_wanted:
            return 0.0 if num_published > 0 else math.inf
        # Jobs end in bursts, and a poll between two bursts sees few. So no single poll makes the
        # next wait more than twice as long.
        num_gone = max(num_published, self.num_wanted / 4)
        return filled_seconds * self.num_wanted / 2 / num_gone


def seconds_until_needed(
    targets: Mapping[str, QueueTarget], published: Mapping[str, int], filled_seconds: float
) -> float:
    """The shortest of the models' times; infinity if no model needs more jobs."""
    return min(
        (
            target.seconds_until_needed(published.get(model, 0), filled_seconds)
            for model, target in targets.items()
            if target.num_wanted > 0
        ),
        default=math.inf,
    )
