"""Sequence: an encoded request and how far it has come."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum

from engine.protocol.messages import Request
from engine.sampling.resolve_params import Settings


class SequenceState(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


NEXT = {
    SequenceState.WAITING: {SequenceState.RUNNING, SequenceState.FINISHED},  # FINISHED: cancelled
    SequenceState.RUNNING: {SequenceState.FINISHED},
    SequenceState.FINISHED: set(),
}


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in token ids. Only the scheduler changes `state`."""

    request: Request
    prompt_ids: tuple[int, ...]
    settings: Settings
    num_rows: int  # beams or returned sequences: they live and die together
    num_prefill_tokens: int  # what the step in which it joins computes for it
    group: Hashable = None  # only sequences of one group share a step
    # What a translator is told beside the prompt: how its answer begins.
    forced_bos_token_id: int | None = None
    decoder_start_token_id: int | None = None
    # Whether the step in which it joins is its only one. It may share that step with those
    # of another group that go on.
    runs_to_end: bool = False
    num_cache_tokens: int = 0  # keys and values kept between steps at its longest, all rows
    state: SequenceState = SequenceState.WAITING

    @property
    def id(self) -> int:
        return self.request.id

    def move(self, state: SequenceState) -> None:
        assert state in NEXT[self.state], f"sequence {self.id}: {self.state} to {state}"
        self.state = state
