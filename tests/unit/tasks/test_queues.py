"""How many messages a worker takes at once follows from the places of its models."""

import pytest

from tasks.configuration.catalog import Model
from tasks.queues import JOBS_PER_MESSAGE, messages_in_flight


def model(max_sequences: int, replicas: int) -> Model:
    return Model(
        alias="fake",
        checkpoint="fake",
        engine="fake",
        tasks=("generate",),
        max_sequences=max_sequences,
        replicas=replicas,
    )


@pytest.mark.parametrize("max_sequences", [1, 8, 32, 128, 1024])
@pytest.mark.parametrize("replicas", [1, 3])
def test_bulk_messages_leave_room_for_interactive_ones(max_sequences: int, replicas: int) -> None:
    num_places = max_sequences * replicas
    # What the dispatcher sends out for one worker: twice what it wants at hand.
    num_bulk = 2 * (2 * num_places) // JOBS_PER_MESSAGE
    num_left = messages_in_flight(model(max_sequences, replicas)) - num_bulk
    assert num_left >= max(8, num_places)
