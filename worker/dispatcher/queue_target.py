"""Room: how many jobs of a model may be out, and how soon there is need of more."""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Room:
    """For the bulk jobs of one model, as a look finds it.

    What the workers want at hand may be out, and as many once more, in line behind it.
    """

    num_wanted: int  # by the live workers, at hand
    num_out: int  # published or running

    @property
    def max_out(self) -> int:
        return 2 * self.num_wanted

    @property
    def num_free(self) -> int:
        return self.max_out - self.num_out

    def seconds_until_needed(self, num_published: int, filled_seconds: float) -> float:
        """Until half of the line is gone again, by what went since it was filled so long ago.

        The other half is for a pace that rises. 0 if all was gone: then this look came late,
        and there is no telling how late.
        """
        if self.num_out < self.num_wanted:
            return 0.0 if num_published > 0 else math.inf
        # Jobs end in crowds, and a look between two of them sees few: no single one makes
        # the next wait more than twice as long.
        num_gone = max(num_published, self.num_wanted / 4)
        return filled_seconds * self.num_wanted / 2 / num_gone


def seconds_until_needed(
    rooms: Mapping[str, Room], published: Mapping[str, int], filled_seconds: float
) -> float:
    """Of the model with the most urgent line; infinity if there is none."""
    return min(
        (
            room.seconds_until_needed(published.get(model, 0), filled_seconds)
            for model, room in rooms.items()
            if room.num_wanted > 0
        ),
        default=math.inf,
    )
