"""Sequence: a tokenized request and its state in the scheduler."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from engine.protocol.request import Request
from engine.sampling.resolve_params import ResolvedParams

if TYPE_CHECKING:
    from engine.kv_cache.prefix_cache import PromptBlocks
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
    """A tokenized request. Only the scheduler changes `state`."""

    request: Request
    prompt_ids: tuple[int, ...]
    settings: ResolvedParams
    num_rows: int  # beams or returned sequences, which run and end together
    num_prefill_tokens: int  # prompt tokens computed in the step that admits it, all rows
    # Only sequences with equal keys share a step. This key, `runs_to_completion` and
    # `num_cache_tokens` are set by the backend.
    batch_key: Hashable = None
    # The first tokens of a translator's answer; None: those of the checkpoint.
    forced_bos_token_id: int | None = None
    decoder_start_token_id: int | None = None
    grammar: Grammar | None = None  # for the token masks of its rows
    # Whether the step that admits it is its only one. It may share that step with running
    # sequences that have another batch key.
    runs_to_completion: bool = False
    num_cache_tokens: int = 0  # keys and values kept between steps at its longest, all rows
    # How many prompt tokens are in the cache after the planned step. None: all, after the step that
    # admits it. A backend that reads prompts in slices sets 0.
    num_read_tokens: int | None = None
    blocks: PromptBlocks | None = None  # of its prompt, for the prefix cache; None: not shared
    state: SequenceState = SequenceState.WAITING

    @property
    def id(self) -> int:
        return self.request.id

    @property
    def num_found_tokens(self) -> int:
        """The number of leading prompt tokens that are in the prefix cache."""
        return 0 if self.blocks is None else self.blocks.num_found_tokens

    @property
    def is_read(self) -> bool:
        """Whether the planned step reads the rest of the prompt."""
        return self.num_read_tokens is None or self.num_read_tokens == len(self.prompt_ids)

    def move(self, state: SequenceState) -> None:
        """Enter the next state, which NEXT must allow."""
        assert state in NEXT[self.state], f"sequence {self.id}: {self.state} to {state}"
        self.state = state
