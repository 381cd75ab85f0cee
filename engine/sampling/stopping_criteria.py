"""PerRequestStops: ends each request in a shared call of `model.generate` by its own criteria."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from engine.core.sequence import Sequence
from engine.text.stop_strings import TokenTexts


class PerRequestStops(StoppingCriteria):
    """Ends each row at its request's length or at one of its stop strings."""

    def __init__(
        self,
        sequences: tuple[Sequence, ...],
        num_before: int,
        token_texts: TokenTexts,
        is_beam_search: bool,
    ) -> None:
        """num_before:     the number of tokens before the first new one
        is_beam_search: rows are reordered; with stop strings all belong to one request
        """
        self.num_before = num_before
        self.token_texts = token_texts
        self.row_sequences = [each for each in sequences for _ in range(each.num_rows)]
        self.is_beam_search = is_beam_search
        self.stopped: dict[int, int] = {}  # new tokens by row, without beams
        self.max_new_tokens = torch.tensor(
            [each.settings.max_new_tokens for each in self.row_sequences]
        )
        self.any_stops = any(each.settings.stop for each in sequences)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Whether each row has ended. input_ids: (rows, tokens) int64; returns (rows,) bool"""
        num_new = input_ids.shape[1] - self.num_before
        if self.is_beam_search:
            return self._beams_end(input_ids)
        ended = num_new >= self.max_new_tokens
        if self.any_stops:
            for row, sequence in enumerate(self.row_sequences):
                if row not in self.stopped and self._ends_with_stop(
                    sequence, self._new(input_ids[row])
                ):
                    self.stopped[row] = num_new
            for row in self.stopped:
                ended[row] = True
        return ended.to(input_ids.device)

    def ended_at(self, row: int, new_ids: list[int]) -> int | None:
        """The number of new tokens up to the stop string that ended a row; None without one."""
        if not self.is_beam_search or not self.any_stops:
            return self.stopped.get(row)
        lengths = range(1, len(new_ids) + 1)
        return next(
            (n for n in lengths if self._ends_with_stop(self.row_sequences[0], new_ids[:n])), None
        )

    def _beams_end(self, input_ids: Tensor) -> Tensor:
        """Whether each candidate ends.

        input_ids: (candidates, tokens) int64; returns (candidates,) bool
        """
        has_ended = [
            self.any_stops and self._ends_with_stop(self.row_sequences[0], self._new(row))
            for row in input_ids
        ]
        return torch.tensor(has_ended, device=input_ids.device)

    def _new(self, row: Tensor) -> list[int]:
        return row[self.num_before :].tolist()

    def _ends_with_stop(self, sequence: Sequence, new_ids: list[int]) -> bool:
        return bool(sequence.settings.stop) and self.token_texts.has_stop_string(sequence, new_ids)
