"""Sequence: a tokenized request and its state in the scheduler."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from engine.protocol.messages import Request
from engine.sampling.resolve_params import ResolvedParams

if TYPE_CHECKING:
    from engine.text.grammars import Grammar


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
    settings: ResolvedParams
    num_rows: int  # beams or returned sequences: they live and die together
    num_prefill_tokens: int  # prompt tokens computed in the step that admits it, all rows
    # Only sequences with equal keys share a step. This key, `runs_to_completion` and
    # `num_cache_tokens` are set by the backend.
    batch_key: Hashable = None
    # The tokens with which the answer of a translator begins; None: those of the checkpoint.
    forced_bos_token_id: int | None = None
    decoder_start_token_id: int | None = None
    grammar: Grammar | None = None  # that its rows follow
    # Whether the step that admits it is its only one. It may share that step with running
    # sequences that have another batch key.
    runs_to_completion: bool = False
    num_cache_tokens: int = 0  # keys and values kept between steps at its longest, all rows
    state: SequenceState = SequenceState.WAITING

    @property
    def id(self) -> int:
        return self.request.id

    def move(self, state: SequenceState) -> None:
        """Enter the next state; it must be one that NEXT allows."""
        assert state in NEXT[self.state], f"sequence {self.id}: {self.state} to {state}"
        self.state = state
