"""Scheduler: chooses the sequences of the next step. No torch, clock or I/O.

Sequences wait in order of arrival, interactive ones before bulk ones. The first sets the batch key:
only sequences with its key are admitted until it is admitted itself. After MAX_OVERTAKING
interactive sequences the oldest of all comes first, so none starves.

A long prompt is read in slices (chunked prefill), one slice a step, so that the sequences that
decode beside it wait about twice as long as usual for a token. If only bulk sequences run and more
of them wait, slices are longer, because only the total time matters.

Prompts with a common prefix are read one after the other, so that the second finds in the prefix
cache what the first computed. A sequence whose prefix is being read in this step waits for the next
step. Among the first MAX_LOOK_AHEAD bulk sequences, those with a cached prefix go before the
others, but not before the first. Only when all of these are admitted are the next MAX_LOOK_AHEAD
considered, so a sequence is passed by no more than that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, takewhile

from engine.core.completion import Completion
from engine.core.sequence import Sequence, SequenceState
from engine.core.slice_size import MIN_TOKENS, SliceSize
from engine.errors import InvariantBroken, PromptTooLong, UnsupportedParameter
from engine.protocol.engine_spec import EngineSpec

# A step with so many prompt tokens is short enough for the running sequences, which wait for
# their next token meanwhile, and long enough to keep matrix products efficient.
MAX_ADMITTED_TOKENS = 512
# The most interactive sequences that are admitted before one that arrived earlier.
MAX_OVERTAKING = 64
# The bulk sequences that are considered for reordering by cached prefixes.
MAX_LOOK_AHEAD = 64
MIN_SHARED_TOKENS = 64  # fewer are not worth waiting or reordering for


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The limits of one step."""

    max_sequences: int  # rows
    max_step_tokens: int  # prompt tokens to read, and one for each running row
    # The most prompt tokens read at once beside running rows. A longer prompt is read in slices,
    # or alone if its backend has none; sequences that run to completion are exempt.
    max_admitted_tokens: int | None = None
    max_cache_tokens: int | None = None  # kept between steps, counting each at its longest

    @classmethod
    def of(cls, spec: EngineSpec) -> StepLimits:
        """The limits of a spec for which every limit is chosen."""
        assert spec.max_sequences is not None
        assert spec.max_step_tokens is not None
        return cls(
            spec.max_sequences,
            spec.max_step_tokens,
            max_cache_tokens=spec.max_cache_tokens,
            max_admitted_tokens=MAX_ADMITTED_TOKENS,
        )

    def refuse_misfit(self, sequence: Sequence) -> None:
        """Raise a RequestError with numbers if no step could ever fit the sequence."""
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
    """The sequences of one step and what it computes.

    It decodes a token for each row of `running`, and reads the prompts of `reading` and `admitted`,
    each up to its `num_read_tokens`.
    """

    running: tuple[Sequence, ...]
    admitted: tuple[Sequence, ...]
    reading: tuple[Sequence, ...] = ()  # admitted earlier, with partly read prompts
    num_prompt_tokens: int = 0  # that it reads
    num_found_tokens: int = 0  # of the prompts of `admitted`, from the prefix cache

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        return self.running + self.reading + self.admitted

    @property
    def num_rows(self) -> int:
        return sum(each.num_rows for each in self.sequences)

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + sum(each.num_rows for each in self.running)


class StepTokens:
    """Counts the tokens of a step while it is planned."""

    def __init__(self, limits: StepLimits, num_rows: int, num_slice_tokens: int) -> None:
        """num_rows:         rows that decode, a token each
        num_slice_tokens: the most tokens to read of long prompts
        """
        self.limits = limits
        self.num_tokens = num_rows
        self.num_slice_tokens = num_slice_tokens  # still available
        self.num_prompt_tokens = self.num_found_tokens = 0
        self.ends: dict[int, int] = {}  # by id: how much of a prompt is read after the step
        self.read_blocks: set[bytes] = set()  # of prompts, by their hashes

    def is_long(self, sequence: Sequence, num_unread: int) -> bool:
        """Whether a prompt with so many unread tokens is read in slices."""
        most = self.limits.max_admitted_tokens
        return sequence.num_read_tokens is not None and most is not None and num_unread > most

    def slice_of(self, num_unread: int) -> int:
        """The length of the next slice of a prompt with so many unread tokens."""
        return min(num_unread, self.num_slice_tokens, self.limits.max_step_tokens - self.num_tokens)

    def can_read(self, sequence: Sequence, num_tokens: int) -> bool:
        """Whether the step has room for so many prompt tokens of the sequence."""
        if self.num_tokens + num_tokens > self.limits.max_step_tokens:
            return False
        most = self.limits.max_admitted_tokens
        if most is None or sequence.runs_to_completion or not self.num_prompt_tokens:
            return True
        return self.num_prompt_tokens + num_tokens <= most

    def read(self, sequence: Sequence, start: int, num_tokens: int, is_slice: bool) -> None:
        self.num_tokens += num_tokens
        self.num_prompt_tokens += num_tokens
        if is_slice:
            self.num_slice_tokens -= num_tokens
        self.ends[sequence.id] = start + num_tokens
        if sequence.blocks is not None:
            self.read_blocks.update(sequence.blocks.hashes_of(start, start + num_tokens))

    def reads_start_of(self, sequence: Sequence, num_found: int) -> bool:
        """Whether the step already reads enough of the sequence's next blocks."""
        blocks = sequence.blocks
        if blocks is None or not self.read_blocks:
            return False
        unread = blocks.usable[num_found // blocks.cache.block_tokens :]
        num_shared = sum(1 for _ in takewhile(self.read_blocks.__contains__, unread))
        return num_shared * blocks.cache.block_tokens >= MIN_SHARED_TOKENS


class Scheduler:
    """Chooses which sequences run.

    Always: each sequence is in `waiting` or in `running`, not both.

    The rows of `running` are counted in `num_rows` and within the limits; `reading` holds those of
    `running` whose prompts are not fully read.
    """

    def __init__(self, limits: StepLimits) -> None:
        self.limits = limits
        self.waiting: OrderedDict[int, Sequence] = OrderedDict()  # by id, in order of arrival
        self.interactive: OrderedDict[int, Sequence] = OrderedDict()  # of those waiting
        self.look_ahead: OrderedDict[int, Sequence] = OrderedDict()  # of those waiting
        self.num_overtaking = 0  # sequences admitted before the oldest that waits
        self.running: dict[int, Sequence] = {}
        self.reading: dict[int, Sequence] = {}  # of those running
        self.slice_size = SliceSize()
        self.has_backlog = False  # whether the last step left any waiting
        self.num_rows = 0  # of those running
        self.num_cache_tokens = 0  # of those running

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue sequences that have passed `limits.refuse_misfit`."""
        for sequence in sequences:
            assert sequence.id not in self.waiting
            assert sequence.id not in self.running
            self.waiting[sequence.id] = sequence
            if sequence.request.is_interactive:
                self.interactive[sequence.id] = sequence

    def next_step(self, max_rows: int | None = None) -> StepPlan | None:
        """The plan of the next step; None when there is nothing to do.

        max_rows: a bound below that of the limits, after memory ran out. Running sequences, and a
                  single new one, may exceed it
        """
        running = tuple(each for each in self.running.values() if each.id not in self.reading)
        max_sequences = self.limits.max_sequences
        if max_rows is not None:
            max_sequences = min(max_rows, max_sequences)
        num_decoding = sum(each.num_rows for each in running)
        step = StepTokens(self.limits, num_decoding, self._num_slice_tokens(running))
        reading = self._go_on_reading(step)
        admitted = self._admit(step, max_sequences)
        if not running and not reading and not admitted:
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
        for sequence in (*reading, *admitted):
            if sequence.num_read_tokens is None:
                continue
            sequence.num_read_tokens = step.ends[sequence.id]
            if sequence.is_read:
                self.reading.pop(sequence.id, None)
            else:
                self.reading[sequence.id] = sequence
        self.has_backlog = bool(self.waiting)
        return StepPlan(
            running,
            tuple(admitted),
            tuple(reading),
            step.num_prompt_tokens,
            step.num_found_tokens,
        )

    def learn(self, plan: StepPlan, seconds: float) -> None:
        """Record the duration of a step, by which the size of slices is adapted."""
        runs_to_completion = any(each.runs_to_completion for each in plan.admitted)
        if plan.running and not runs_to_completion:
            self.slice_size.learn(plan.num_prompt_tokens, seconds)

    def apply(self, plan: StepPlan, results: list[Completion | None]) -> list[Completion]:
        """Remove the finished sequences and return their completions.

        results: the completion of each of `plan.sequences`, in order, or None
        """
        assert len(results) == len(plan.sequences)
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
        unread = {id_ for id_, each in self.running.items() if not each.is_read}
        if unread != self.reading.keys():
            raise InvariantBroken(f"{sorted(unread)} are not read, {list(self.reading)} are listed")

    def _in_order(self) -> Iterator[Sequence]:
        """The waiting sequences in the order in which they may be admitted."""
        if self.num_overtaking >= MAX_OVERTAKING or not self.interactive:
            return iter(self.waiting.values())
        others = (each for each in self.waiting.values() if not each.request.is_interactive)
        return chain(self.interactive.values(), others)

    def _in_order_of_meeting(self) -> Iterator[Sequence]:
        """The same, with bulk sequences that have a cached prefix moved ahead."""
        order = self._in_order()
        first = next(order)
        yield first
        sharing: set[int] | None = None
        for sequence in order:
            if sharing is None and not sequence.request.is_interactive:
                sharing = set()
                for each in self._looked_at():
                    if each is not first and each.num_found_tokens >= MIN_SHARED_TOKENS:
                        sharing.add(each.id)
                        yield each
            if not sharing or sequence.id not in sharing:
                yield sequence

    def _looked_at(self) -> list[Sequence]:
        if not self.look_ahead:
            bulk = (each for each in self.waiting.values() if not each.request.is_interactive)
            self.look_ahead.update((each.id, each) for each in islice(bulk, MAX_LOOK_AHEAD))
        return list(self.look_ahead.values())

    def _leave(self, sequence: Sequence) -> None:
        """Remove a sequence from the waiting ones."""
        del self.waiting[sequence.id]
        self.interactive.pop(sequence.id, None)
        self.look_ahead.pop(sequence.id, None)

    def _num_slice_tokens(self, decoding: tuple[Sequence, ...]) -> int:
        """The most tokens that the next step reads of long prompts."""
        most = self.limits.max_admitted_tokens
        if not decoding or most is None:
            return self.limits.max_step_tokens
        is_for_somebody = any(each.request.is_interactive for each in self.running.values())
        if self.has_backlog and not self.interactive and not is_for_somebody:
            return most
        return min(self.slice_size.num_tokens, most)

    def _go_on_reading(self, step: StepTokens) -> list[Sequence]:
        """Plan the next slices of partly read prompts; returns their sequences."""
        read = []
        for sequence in self.reading.values():
            assert sequence.num_read_tokens is not None
            num_tokens = step.slice_of(len(sequence.prompt_ids) - sequence.num_read_tokens)
            if num_tokens > 0:
                step.read(sequence, sequence.num_read_tokens, num_tokens, is_slice=True)
                read.append(sequence)
        return read

    def _admit(self, step: StepTokens, max_sequences: int) -> list[Sequence]:
        """The sequences to admit beside the running ones, in order.

        The first that does not fit ends the list, so that small requests cannot keep a large one
        waiting. Two kinds are skipped instead: a sequence with a long prompt while another one's
        slice takes the room, and a sequence whose prefix this step reads.
        """
        if not self.waiting:
            return []
        leader = next(self._in_order())
        batch_key = next((each.batch_key for each in self.running.values()), None)
        if (
            batch_key is not None
            and leader.batch_key != batch_key
            and not leader.runs_to_completion
        ):
            return []
        num_rows = self.num_rows
        num_cache_tokens = self.num_cache_tokens
        admitted: list[Sequence] = []
        num_passed = 0
        for sequence in self._in_order_of_meeting():
            if num_passed > MAX_LOOK_AHEAD:
                break
            if sequence.batch_key != leader.batch_key:
                continue
            num_found = sequence.num_found_tokens
            if step.reads_start_of(sequence, num_found):
                num_passed += 1
                continue
            num_tokens = sequence.num_prefill_tokens - num_found
            is_slice = step.is_long(sequence, num_tokens)
            if is_slice:
                num_tokens = step.slice_of(num_tokens)
                if num_tokens < MIN_TOKENS and step.num_prompt_tokens:
                    num_passed += 1
                    continue
            num_rows += sequence.num_rows
            num_cache_tokens += sequence.num_cache_tokens
            is_first = not admitted and not self.running
            if (
                (num_rows > max_sequences and not is_first)
                or not step.can_read(sequence, num_tokens)
                or num_tokens < 1
                or not self.limits.can_cache(num_cache_tokens)
            ):
                break
            step.read(sequence, num_found, num_tokens, is_slice)
            step.num_found_tokens += num_found
            admitted.append(sequence)
        return admitted

    def _finish(self, sequence: Sequence) -> None:
        if self.running.pop(sequence.id, None) is not None:
            self.reading.pop(sequence.id, None)
            self.num_rows -= sequence.num_rows
            self.num_cache_tokens -= sequence.num_cache_tokens
        else:
            self._leave(sequence)
        sequence.move(SequenceState.FINISHED)
