"""Scheduler: who runs in the next step. No torch, clock or I/O.

Sequences wait in order of arrival, those that are interactive before the others. The first
leads: whoever joins a step is of its group, and nobody of another group joins before it has.
Only so many go before the oldest of all; then it is its turn. So nothing starves.
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

# A step of so many is short enough for those that wait for their next token, and long
# enough to keep the products busy.
MAX_ADMITTED_TOKENS = 512
# Interactive sequences that may join while one waits that came before them.
MAX_OVERTAKING = 64


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What one step may hold."""

    max_sequences: int  # rows
    max_step_tokens: int  # prompt tokens of those that join, and one for each other row
    # Of those that join while others may be waiting for their next token. A longer prompt
    # joins alone; those that run to their end are computed together as they are.
    max_admitted_tokens: int | None = None
    max_cache_tokens: int | None = None  # kept between steps, as long as they may get

    @classmethod
    def of(cls, spec: EngineSpec) -> StepLimits:
        """spec: one in which `sizing` left nothing open"""
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
    """What one step computes: a token for each row that goes on, the prompt of those that join."""

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
        self.num_overtaking = 0  # that have joined before the oldest that waits
        self.running: dict[int, Sequence] = {}
        self.num_rows = 0  # of those running
        self.num_cache_tokens = 0  # of those running

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Sequences that `limits.refuse_misfit` let pass."""
        for sequence in sequences:
            assert sequence.id not in self.waiting
            assert sequence.id not in self.running
            self.waiting[sequence.id] = sequence
            if sequence.request.is_interactive:
                self.interactive[sequence.id] = sequence

    def next_step(self, max_rows: int | None = None) -> StepPlan | None:
        """The next step; None when there is nothing to do.

        max_rows: if there is not memory for as many as the limits allow; those that run
        already, and a single sequence, may be more
        """
        running = tuple(self.running.values())
        max_sequences = self.limits.max_sequences
        if max_rows is not None:
            max_sequences = min(max_rows, max_sequences)
        admitted = self._admit(running[0].group if running else None, max_sequences)
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
        """Take out what finished in the step; `results` go with `plan.sequences`."""
        assert len(results) == len(plan.running) + len(plan.admitted)
        finished = [each for each in results if each is not None]
        for completion in finished:
            self._finish(completion.sequence)
        return finished

    def cancel(self, ids: Iterable[int]) -> list[Sequence]:
        """Take out those of the ids that are here, waiting or running."""
        found: list[Sequence] = []
        for id_ in ids:
            sequence = self.waiting.get(id_) or self.running.get(id_)
            if sequence is not None:
                self._finish(sequence)
                found.append(sequence)
        return found

    def check(self) -> None:
        """Raise InvariantBroken if the books do not agree."""
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
        if len({each.group for each in self.running.values()}) > 1:
            raise InvariantBroken("sequences of several groups share a step")

    def _in_order(self) -> Iterator[Sequence]:
        """Those that wait, as they are to join."""
        if self.num_overtaking >= MAX_OVERTAKING or not self.interactive:
            return iter(self.waiting.values())
        others = (each for each in self.waiting.values() if not each.request.is_interactive)
        return chain(self.interactive.values(), others)

    def _leave(self, sequence: Sequence) -> None:
        """It waits no more."""
        del self.waiting[sequence.id]
        self.interactive.pop(sequence.id, None)

    def _admit(self, group: Hashable | None, max_sequences: int) -> list[Sequence]:
        """Who joins those of `group`, in order; the first that does not fit ends the row, so
        that small requests cannot keep a large one waiting for ever."""
        if not self.waiting:
            return []
        leader = next(self._in_order())
        if group is not None and leader.group != group and not leader.runs_to_end:
            return []
        num_rows = self.num_rows
        num_cache_tokens = self.num_cache_tokens
        num_tokens = self.num_rows  # one for each row that goes on
        num_joining_tokens = 0
        admitted: list[Sequence] = []
        for sequence in self._in_order():
            if sequence.group != leader.group:
                continue
            num_rows += sequence.num_rows
            num_tokens += sequence.num_prefill_tokens
            num_joining_tokens += sequence.num_prefill_tokens
            num_cache_tokens += sequence.num_cache_tokens
            is_first = not admitted and not self.running
            if (
                (num_rows > max_sequences and not is_first)
                or (admitted and self._is_long(sequence, num_joining_tokens))
                or num_tokens > self.limits.max_step_tokens
                or not self.limits.can_cache(num_cache_tokens)
            ):
                break
            admitted.append(sequence)
        return admitted

    def _is_long(self, sequence: Sequence, num_joining_tokens: int) -> bool:
        most = self.limits.max_admitted_tokens
        return most is not None and not sequence.runs_to_end and num_joining_tokens > most

    def _finish(self, sequence: Sequence) -> None:
        if self.running.pop(sequence.id, None) is not None:
            self.num_rows -= sequence.num_rows
            self.num_cache_tokens -= sequence.num_cache_tokens
        else:
            self._leave(sequence)
        sequence.move(SequenceState.FINISHED)
