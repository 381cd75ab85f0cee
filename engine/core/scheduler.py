"""Scheduler: which sequences run in the next step. No torch, clock or I/O.

Sequences wait in order of arrival, interactive ones before the others. The first in this order
sets the batch key: only sequences with that key are admitted, and none with another key before
it is. After MAX_OVERTAKING interactive sequences the oldest of all is first. So none starves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from engine.core.completion import Completion
from engine.core.sequence import Sequence, SequenceState
from engine.errors import InvariantBroken, PromptTooLong, UnsupportedParameter
from engine.protocol.engine_spec import EngineSpec

# A step with so many prompt tokens is short enough for the running sequences, which wait for
# their next token meanwhile, and long enough to keep matrix products efficient.
MAX_ADMITTED_TOKENS = 512
# The most interactive sequences that are admitted before one that arrived earlier.
MAX_OVERTAKING = 64


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The limits of one step."""

    max_sequences: int  # rows
    max_step_tokens: int  # prompt tokens of admitted sequences, and one for each running row
    # The most prompt tokens admitted at once. A longer prompt is admitted alone; sequences that
    # run to completion are exempt.
    max_admitted_tokens: int | None = None
    max_cache_tokens: int | None = None  # kept between steps, counting each at its longest

    @classmethod
    def of(cls, spec: EngineSpec) -> StepLimits:
        """The limits of a spec in which `sized` has chosen every limit."""
        assert spec.max_sequences is not None
        assert spec.max_step_tokens is not None
        return cls(
            spec.max_sequences,
            spec.max_step_tokens,
            max_cache_tokens=spec.max_cache_tokens,
            max_admitted_tokens=MAX_ADMITTED_TOKENS,
        )

    def refuse_misfit(self, sequence: Sequence) -> None:
        """Raise a RequestError with numbers if the sequence could never run."""
        if sequence.num_rows > self.max_sequences:
            name = "num_beams" if sequence.settings.num_beams > 1 else "num_return_sequences"
            raise UnsupportedParameter(
                name,
                f"the request needs {sequence.num_rows} rows; this model runs "
                f"{self.max_sequences} at once (max_sequences)",
            )
        if sequence.num_prefill_tokens > self.max_step_tokens:
            num_tokens = len(sequence.prompt_ids)
            num_readings = sequence.num_prefill_tokens // num_tokens
            remedy = "shorten the text, or raise max_step_tokens of the model"
            if num_readings > 1:
                remedy += f", or ask for fewer than {num_readings} beams or answers"
            raise PromptTooLong(num_tokens, self.max_step_tokens // num_readings, remedy)
        if not self.can_cache(sequence.num_cache_tokens):
            raise UnsupportedParameter(
                "max_new_tokens",
                f"with its prompt of {len(sequence.prompt_ids)} tokens, "
                f"{sequence.settings.max_new_tokens} new ones and {sequence.num_rows} rows the "
                f"request needs {sequence.num_cache_tokens} places in the cache, which has "
                f"{self.max_cache_tokens} (max_cache_tokens); ask for less, or raise it",
            )

    def can_cache(self, num_tokens: int) -> bool:
        return self.max_cache_tokens is None or num_tokens <= self.max_cache_tokens


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: it decodes a token for each row of `running` and prefills `admitted`."""

    running: tuple[Sequence, ...]
    admitted: tuple[Sequence, ...]

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        return self.running + self.admitted

    @property
    def num_rows(self) -> int:
        return sum(each.num_rows for each in self.sequences)

    @property
    def num_tokens(self) -> int:
        prefill = sum(each.num_prefill_tokens for each in self.admitted)
        return prefill + sum(each.num_rows for each in self.running)


class Scheduler:
    """Always: each sequence is in `waiting` or in `running`, never in both; the rows of
    `running` are counted in `num_rows` and within the limits."""

    def __init__(self, limits: StepLimits) -> None:
        self.limits = limits
        self.waiting: OrderedDict[int, Sequence] = OrderedDict()  # by id, in order of arrival
        self.interactive: OrderedDict[int, Sequence] = OrderedDict()  # of those waiting
        self.num_overtaking = 0  # sequences admitted before the oldest that waits
        self.running: dict[int, Sequence] = {}
        self.num_rows = 0  # of those running
        self.num_cache_tokens = 0  # of those running

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue sequences that passed `limits.refuse_misfit`."""
        for sequence in sequences:
            assert sequence.id not in self.waiting
            assert sequence.id not in self.running
            self.waiting[sequence.id] = sequence
            if sequence.request.is_interactive:
                self.interactive[sequence.id] = sequence

    def next_step(self, max_rows: int | None = None) -> StepPlan | None:
        """The next step; None when there is nothing to do.

        max_rows: a bound below that of the limits, after memory ran out; sequences that run
                  already, and a single sequence, may exceed it
        """
        running = tuple(self.running.values())
        max_sequences = self.limits.max_sequences
        if max_rows is not None:
            max_sequences = min(max_rows, max_sequences)
        admitted = self._admit(running[0].batch_key if running else None, max_sequences)
        if not running and not admitted:
            return None
        if admitted:
            is_turn = next(iter(self.waiting.values())) in admitted
            num_overtaking = sum(each.request.is_interactive for each in admitted)
            self.num_overtaking = 0 if is_turn else self.num_overtaking + num_overtaking
        for sequence in admitted:
            self._leave(sequence)
            sequence.move(SequenceState.RUNNING)
            self.running[sequence.id] = sequence
            self.num_rows += sequence.num_rows
            self.num_cache_tokens += sequence.num_cache_tokens
        return StepPlan(running, tuple(admitted))

    def apply(self, plan: StepPlan, results: list[Completion | None]) -> list[Completion]:
        """Remove the finished sequences and return their completions.

        results: for each of `plan.sequences`, in order, its completion or None
        """
        assert len(results) == len(plan.running) + len(plan.admitted)
        finished = [each for each in results if each is not None]
        for completion in finished:
            self._finish(completion.sequence)
        return finished

    def cancel(self, ids: Iterable[int]) -> list[Sequence]:
        """Remove the sequences with these ids and return them; other ids are ignored."""
        found: list[Sequence] = []
        for id_ in ids:
            sequence = self.waiting.get(id_) or self.running.get(id_)
            if sequence is not None:
                self._finish(sequence)
                found.append(sequence)
        return found

    def check(self) -> None:
        """Raise InvariantBroken if states, counters and limits do not agree."""
        for state, held in (
            (SequenceState.WAITING, self.waiting),
            (SequenceState.RUNNING, self.running),
        ):
            wrong = {id_: each.state for id_, each in held.items() if each.state is not state}
            if wrong:
                raise InvariantBroken(f"among those {state.value}: {wrong}")
        rows = sum(each.num_rows for each in self.running.values())
        if rows != self.num_rows or rows > self.limits.max_sequences:
            raise InvariantBroken(
                f"{rows} rows run, {self.num_rows} are counted, "
                f"{self.limits.max_sequences} are allowed"
            )
        cache_tokens = sum(each.num_cache_tokens for each in self.running.values())
        if cache_tokens != self.num_cache_tokens or not self.limits.can_cache(cache_tokens):
            raise InvariantBroken(
                f"{cache_tokens} places of the cache are taken, {self.num_cache_tokens} are "
                f"counted, {self.limits.max_cache_tokens} are allowed"
            )
        interactive = [id_ for id_, each in self.waiting.items() if each.request.is_interactive]
        if interactive != list(self.interactive):
            raise InvariantBroken(f"{interactive} wait first, {list(self.interactive)} are listed")
        if len({each.batch_key for each in self.running.values()}) > 1:
            raise InvariantBroken("sequences with several batch keys share a step")

    def _in_order(self) -> Iterator[Sequence]:
        """The waiting sequences in the order in which they are to be admitted."""
        if self.num_overtaking >= MAX_OVERTAKING or not self.interactive:
            return iter(self.waiting.values())
        others = (each for each in self.waiting.values() if not each.request.is_interactive)
        return chain(self.interactive.values(), others)

    def _leave(self, sequence: Sequence) -> None:
        """Remove a sequence from those that wait."""
        del self.waiting[sequence.id]
        self.interactive.pop(sequence.id, None)

    def _admit(self, batch_key: Hashable | None, max_sequences: int) -> list[Sequence]:
        """The sequences to admit beside running ones with `batch_key`, in order. The first that
        does not fit ends the list, so that small requests cannot keep a large one waiting."""
        if not self.waiting:
            return []
        leader = next(self._in_order())
        if (
            batch_key is not None
            and leader.batch_key != batch_key
            and not leader.runs_to_completion
        ):
            return []
        num_rows = self.num_rows
        num_cache_tokens = self.num_cache_tokens
        num_tokens = self.num_rows  # one for each running row
        num_admitted_tokens = 0
        admitted: list[Sequence] = []
        for sequence in self._in_order():
            if sequence.batch_key != leader.batch_key:
                continue
            num_rows += sequence.num_rows
            num_tokens += sequence.num_prefill_tokens
            num_admitted_tokens += sequence.num_prefill_tokens
            num_cache_tokens += sequence.num_cache_tokens
            is_first = not admitted and not self.running
            if (
                (num_rows > max_sequences and not is_first)
                or (admitted and self._is_long(sequence, num_admitted_tokens))
                or num_tokens > self.limits.max_step_tokens
                or not self.limits.can_cache(num_cache_tokens)
            ):
                break
            admitted.append(sequence)
        return admitted

    def _is_long(self, sequence: Sequence, num_admitted_tokens: int) -> bool:
        most = self.limits.max_admitted_tokens
        return most is not None and not sequence.runs_to_completion and num_admitted_tokens > most

    def _finish(self, sequence: Sequence) -> None:
        if self.running.pop(sequence.id, None) is not None:
            self.num_rows -= sequence.num_rows
            self.num_cache_tokens -= sequence.num_cache_tokens
        else:
            self._leave(sequence)
        sequence.move(SequenceState.FINISHED)
