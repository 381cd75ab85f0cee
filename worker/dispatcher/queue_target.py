"""Queue targets: how many jobs of a model may be out, and how soon more are needed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueueTarget:
    """The target of one model's bulk queue, and how far it is from it at a poll.

    What the workers want at hand may be out, and as many once more, waiting behind it.
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
        """Seconds until half of what waits is gone, at the pace since the queue was last filled.

        num_published: how many this poll publishes; filled_seconds: how long ago the last
        filling was. The other half is for a pace that rises. 0 if all was gone: then this
        poll came late, and there is no telling how late.
        """
        if self.num_out < self.num_wanted:
            return 0.0 if num_published > 0 else math.inf
        # Jobs end in crowds, and a poll between two of them sees few: no single one makes
        # the next wait more than twice as long.
        num_gone = max(num_published, self.num_wanted / 4)
        return filled_seconds * self.num_wanted / 2 / num_gone


def seconds_until_needed(
    targets: Mapping[str, QueueTarget], published: Mapping[str, int], filled_seconds: float
) -> float:
    """The shortest of the models' times; infinity if no model needs anything."""
    return min(
        (
            target.seconds_until_needed(published.get(model, 0), filled_seconds)
            for model, target in targets.items()
            if target.num_wanted > 0
        ),
        default=math.inf,
    )
