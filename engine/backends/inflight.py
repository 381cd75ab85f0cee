"""InflightBackend: one step for sequences that each are somewhere else in their answer.

The model's own forward computes a token for every row; what differs from row to row
(lengths, positions, processors, draws) is kept by sequence. A step that fails is run again
one sequence at a time, so that only the culprit is blamed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.backends.generate import GenerateBackend
from engine.core.completion import Completion
from engine.core.sequence import Sequence
from engine.cpu.optional import compiled
from engine.device_errors import is_beyond_repair, is_out_of_memory, release_memory
from engine.errors import EngineBroken, GenerationFailed, InvariantBroken, OutOfMemory
from engine.kv_cache.base import KVCacheManager
from engine.kv_cache.contiguous import SequenceCache
from engine.logging import error_location
from engine.sampling.beam_search import BeamSearch
from engine.sampling.sampler import Sampler

log = logging.getLogger(__name__)


class Runner(Protocol):
    """The forward passes of one family."""

    kv_cache: KVCacheManager

    def start_ids(self, sequence: Sequence) -> tuple[int, ...]: ...

    def read(self, sequences: list[Sequence]) -> tuple[list[SequenceCache], Tensor | None]: ...

    def step(self, slots: list[SequenceCache], tokens: list[int]) -> Tensor: ...

    def can_mix(self, sequences: list[Sequence]) -> bool: ...

    def read_and_step(
        self, sequences: list[Sequence], slots: list[SequenceCache], tokens: list[int]
    ) -> tuple[list[SequenceCache], Tensor]: ...


@dataclass(frozen=True, slots=True)
class RunningSequence:
    """A sequence between its first step and its last."""

    sequence: Sequence
    slot: SequenceCache
    choice: Sampler | BeamSearch


class InflightBackend:
    """Always: a slot is held for each sequence that goes on, and for no other."""

    def __init__(self, exact: GenerateBackend, runner: Runner) -> None:
        """exact: gives the configuration and shapes the answers, so that both engines agree"""
        self.exact = exact
        self.runner = runner
        self.running_sequences: dict[int, RunningSequence] = {}
        self.max_rows: int | None = None  # of one step, once memory was too small for more
        self.compiled = compiled("kernels.argmax")

    def run(
        self, running: tuple[Sequence, ...], admitted: tuple[Sequence, ...]
    ) -> list[Completion | None]:
        """Read the prompts of those that join, and one more token for each row."""
        mixed = self._mixed(list(running), list(admitted))
        if mixed is not None:
            return mixed
        results = dict(zip(admitted, self._blaming(list(admitted), self._read), strict=True))
        # An encoder-decoder has its first token from the step, beside those of the others.
        begun = [each for each in admitted if self._waits_for_its_first(each)]
        stepping = [*running, *begun]
        results |= zip(stepping, self._blaming(stepping, self._step), strict=True)
        return [results[each] for each in (*running, *admitted)]

    def _mixed(
        self, running: list[Sequence], admitted: list[Sequence]
    ) -> list[Completion | None] | None:
        """All of it at once; None where that cannot be, or fails."""
        if not running or not admitted or not self.runner.can_mix(admitted):
            return None
        if len(parts_within([*running, *admitted], self.max_rows)) != 1:
            return None
        running_sequences = [self.running_sequences[each.id] for each in running]
        tokens = [token for each in running_sequences for token in each.choice.next_ids]
        try:
            slots, logits = self.runner.read_and_step(
                admitted, [each.slot for each in running_sequences], tokens
            )
            joined = self._start_running(admitted, slots)
            num_rows = [1] * len(tokens) + [each.num_rows for each in admitted]
            if max(num_rows) > 1:
                logits = logits.repeat_interleave(torch.tensor(num_rows), dim=0)
            argmax = self._argmax(logits, [*running_sequences, *joined])
        except Exception as error:
            if is_beyond_repair(error):
                raise EngineBroken(f"the device failed: {type(error).__name__}") from error
            # Apart, it can be told whose fault it is.
            log.warning("step failed and is run apart", extra={"error": error_location(error)})
            self.drop(admitted)
            return None
        for each in running_sequences:
            each.slot.length += 1
        return self._choose([*running_sequences, *joined], logits, argmax)

    def _waits_for_its_first(self, sequence: Sequence) -> bool:
        flight = self.running_sequences.get(sequence.id)
        return flight is not None and flight.slot.length == 0

    def drop(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            flight = self.running_sequences.pop(sequence.id, None)
            if flight is not None:
                flight.slot.clear()

    def check(self, running: Iterable[Sequence]) -> None:
        """Raise InvariantBroken if slots are held for others than those that run."""
        ids = {each.id for each in running}
        if ids != self.running_sequences.keys():
            raise InvariantBroken(
                f"slots of {sorted(self.running_sequences)}, but {sorted(ids)} run"
            )
        for id_, flight in self.running_sequences.items():
            slot = flight.slot
            if not 0 < slot.length <= slot.capacity or slot.num_rows != flight.sequence.num_rows:
                raise InvariantBroken(
                    f"the slot of {id_} has {slot.num_rows} rows and {slot.length} "
                    f"columns of {slot.capacity}"
                )
        self.runner.kv_cache.check(each.slot for each in self.running_sequences.values())

    def _step(self, sequences: list[Sequence]) -> list[Completion | None]:
        running_sequences = [self.running_sequences[each.id] for each in sequences]
        tokens = [token for each in running_sequences for token in each.choice.next_ids]
        logits = self.runner.step([each.slot for each in running_sequences], tokens)
        argmax = self._argmax(logits, running_sequences)
        # From here on nothing is run again.
        for each in running_sequences:
            each.slot.length += 1
        return self._choose(running_sequences, logits, argmax)

    def _read(self, sequences: list[Sequence]) -> list[Completion | None]:
        self.drop(sequences)  # what may be left of a reading that failed
        slots, logits = self.runner.read(sequences)
        running_sequences = self._start_running(sequences, slots)
        if logits is None:
            return [None] * len(running_sequences)
        num_rows = torch.tensor([each.num_rows for each in sequences], device=logits.device)
        logits = logits.repeat_interleave(num_rows, dim=0)
        return self._choose(running_sequences, logits, self._argmax(logits, running_sequences))

    def _start_running(
        self, sequences: list[Sequence], slots: list[SequenceCache]
    ) -> list[RunningSequence]:
        running_sequences = [
            RunningSequence(sequence, slot, self._choice_of(sequence))
            for sequence, slot in zip(sequences, slots, strict=True)
        ]
        self.running_sequences |= {each.sequence.id: each for each in running_sequences}
        return running_sequences

    def _choice_of(self, sequence: Sequence) -> Sampler | BeamSearch:
        config = self.exact.generation_config((sequence,))
        start_ids, model = self.runner.start_ids(sequence), self.exact.model
        if sequence.settings.num_beams > 1:
            return BeamSearch(sequence, config, start_ids, model, model.device)
        texts = self.exact.token_texts
        return Sampler(sequence, config, start_ids, texts, model)

    def _argmax(self, logits: Tensor, running_sequences: list[RunningSequence]) -> list[int]:
        """Of every row at once, since most need no more, and one read-back is enough."""
        if not any(each.choice.is_plain for each in running_sequences):
            return [0] * len(logits)  # nobody looks
        if self.compiled is not None and self.compiled.can_argmax(logits):
            return self.compiled.argmax(logits)  # type: ignore[no-any-return]  # a module
        return torch.argmax(logits, dim=-1).tolist()

    def _choose(
        self, running_sequences: list[RunningSequence], logits: Tensor, argmax: list[int]
    ) -> list[Completion | None]:
        """logits: (rows, vocab); the next token of each row, and who ended with it."""
        results: list[Completion | None] = []
        at = 0
        for flight in running_sequences:
            end = at + flight.slot.num_rows
            results.append(self._choose_one(flight, logits[at:end], argmax[at:end]))
            at = end
        return results

    def _choose_one(
        self, flight: RunningSequence, logits: Tensor, argmax: list[int]
    ) -> Completion | None:
        choice = flight.choice
        try:
            if choice.is_plain:
                has_ended = choice.take(argmax)
            else:
                has_ended = choice.choose(logits.to(torch.float32, copy=True))
                if choice.reordered is not None:
                    flight.slot.reorder(choice.reordered)
        except Exception as error:
            # Not raised: the others of this step have theirs, and must not draw again.
            return self._failed(flight.sequence, error, "choosing a token")
        if not has_ended:
            return None
        sequence = flight.sequence
        self.drop([sequence])
        answers = choice.answers()
        return Completion(sequence, tuple(self.exact.answer(sequence, *each) for each in answers))

    def _blaming(
        self,
        sequences: list[Sequence],
        run: Callable[[list[Sequence]], list[Completion | None]],
    ) -> list[Completion | None]:
        """Run all at once; if that fails, each by itself, or half as many rows if it was for
        memory, now and from now on."""
        parts = parts_within(sequences, self.max_rows)
        if len(parts) != 1:
            return [result for part in parts for result in self._blaming(part, run)]
        try:
            return run(sequences)
        except Exception as error:
            if is_beyond_repair(error):
                raise EngineBroken(f"the device failed: {type(error).__name__}") from error
            if len(sequences) == 1:
                doing = (
                    "a decoding step"
                    if sequences[0].id in self.running_sequences
                    else "reading the prompt"
                )
                return [self._failed(sequences[0], error, doing)]
            log.warning(
                "step failed and is run in parts",
                extra={"error": error_location(error), "num_sequences": len(sequences)},
            )
            out_of_memory = is_out_of_memory(error)
        # Out of the except clause, which would keep the failed step's tensors alive.
        self._free_unowned()
        if out_of_memory:
            release_memory(self.exact.model.device)
            self.max_rows = max(sum(each.num_rows for each in sequences) // 2, 1)
            return self._blaming(sequences, run)
        return [result for each in sequences for result in self._blaming([each], run)]

    def _failed(self, sequence: Sequence, error: Exception, doing: str) -> Completion:
        if is_beyond_repair(error):
            raise EngineBroken(f"the device failed: {type(error).__name__}") from error
        self.drop([sequence])
        self._free_unowned()
        if is_out_of_memory(error):
            return Completion.failed(
                sequence, OutOfMemory(sequence.num_rows, len(sequence.prompt_ids))
            )
        log.error("request failed", extra={"error": error_location(error)})
        return Completion.failed(sequence, GenerationFailed(error, doing))

    def _free_unowned(self) -> None:
        # A reading that failed may have made slots that nobody was given.
        self.runner.kv_cache.free_all_but(each.slot for each in self.running_sequences.values())


def parts_within(sequences: list[Sequence], max_rows: int | None) -> list[list[Sequence]]:
    """In order, each part within so many rows or of a single sequence."""
    parts: list[list[Sequence]] = []
    num_rows = 0
    for sequence in sequences:
        num_rows += sequence.num_rows
        if not parts or (max_rows is not None and num_rows > max_rows):
            parts.append([])
            num_rows = sequence.num_rows
        parts[-1].append(sequence)
    return parts
