"""Blame: when a call fails, its sequences run again in parts, so that only the culprit fails."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from engine.core.completion import Completion
from engine.core.sequence import Sequence
from engine.device_errors import is_beyond_repair, is_out_of_memory, release_memory
from engine.errors import EngineBroken, GenerationFailed, OutOfMemory, RequestError
from engine.logging import error_location

log = logging.getLogger(__name__)

Run = Callable[[list[Sequence]], list[Completion | None]]


def no_clean_up(culprit: Sequence | None) -> None:
    """Do nothing: a call that failed leaves nothing behind."""


class Blame:
    """Runs a call that may fail, and finds the sequence that makes it fail."""

    def __init__(
        self, device: torch.device, clean_up: Callable[[Sequence | None], None] = no_clean_up
    ) -> None:
        """clean_up: frees what a failed call left behind; takes the culprit, None after several
        sequences"""
        self.device = device
        self.clean_up = clean_up
        self.max_rows: int | None = None  # of one call, once memory was too small for more

    def run(self, sequences: list[Sequence], run: Run, activity: str) -> list[Completion | None]:
        """Run all sequences in one call. If it fails, run each alone; if memory ran out, run at
        most half as many rows in a call, from then on.

        activity: what `run` does, for the error of a sequence that fails alone
        """
        parts = split_by_rows(sequences, self.max_rows)
        if len(parts) != 1:
            return [result for part in parts for result in self.run(part, run, activity)]
        try:
            return run(sequences)
        except Exception as error:
            if len(sequences) == 1:
                return [self.failed(sequences[0], error, activity)]
            out_of_memory = self.is_for_memory(error, sequences)
        # Out of the except clause, which would keep the failed call's tensors alive.
        self.clean_up(None)
        if out_of_memory:
            release_memory(self.device)
            self.max_rows = max(sum(each.num_rows for each in sequences) // 2, 1)
            return self.run(sequences, run, activity)
        return [result for each in sequences for result in self.run([each], run, activity)]

    def is_for_memory(self, error: Exception, sequences: list[Sequence]) -> bool:
        """Return whether a call failed because memory ran out.

        Raises EngineBroken if every later call would fail too.
        """
        refuse_to_go_on(error)
        log.warning(
            "group failed and is run in parts",
            extra={"error": error_location(error), "num_sequences": len(sequences)},
        )
        return is_out_of_memory(error)

    def failed(self, sequence: Sequence, error: Exception, activity: str) -> Completion:
        """Return the completion of a sequence that failed alone. Raises EngineBroken."""
        refuse_to_go_on(error)
        self.clean_up(sequence)
        if is_out_of_memory(error):
            failure = OutOfMemory(sequence.num_rows, len(sequence.prompt_ids))
            return Completion.failed(sequence, failure)
        if isinstance(error, RequestError):
            return Completion.failed(sequence, error)
        log.error("request failed", extra={"error": error_location(error)})
        return Completion.failed(sequence, GenerationFailed(error, activity))


def refuse_to_go_on(error: Exception) -> None:
    """Raise EngineBroken if every later call on the device would fail too."""
    if is_beyond_repair(error):
        raise EngineBroken(f"the device failed: {type(error).__name__}") from error


def split_by_rows(sequences: list[Sequence], max_rows: int | None) -> list[list[Sequence]]:
    """Split sequences, in order, into parts of at most `max_rows` rows or of a single sequence."""
    parts: list[list[Sequence]] = []
    num_rows = 0
    for sequence in sequences:
        num_rows += sequence.num_rows
        if not parts or (max_rows is not None and num_rows > max_rows):
            parts.append([])
            num_rows = sequence.num_rows
        parts[-1].append(sequence)
    return parts
