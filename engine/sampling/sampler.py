"""Sampler: chooses the next token of each row of one request, greedily or at random.

Results equal those of `generate`. Each request has its own logits processors, generator and stop
strings, which see only its rows, so they do not depend on the other requests of the step.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from engine.core.sequence import Sequence
from engine.sampling.logits_processors import draw, request_processors
from engine.text.stop_strings import TokenTexts


class TokenChoice(Protocol):
    """Chooses the tokens of one request, step by step: a Sampler or a BeamSearch."""

    is_greedy: bool
    """Whether `advance` looks at `argmax` only."""
    parents: Tensor | None
    """(rows,) int64 after `advance`: the row whose keys each row goes on from; None: its own."""

    @property
    def next_ids(self) -> list[int]:
        """The newest token of each row, the model's next input."""

    def advance(self, logits: Tensor, argmax: list[int]) -> bool:
        """Choose the next token of each row. Returns whether the request has ended.

        logits: (rows, vocab)
        argmax: the token with the highest logit of each row, if `is_greedy`
        """

    def answers(self) -> list[tuple[list[int], int | None]]:
        """The new tokens of each returned row, and their number up to a stop string.

        That number is None for a row that did not end with a stop string.
        """


class Sampler:
    """Greedy decoding or sampling for one request, as a TokenChoice.

    A row that has ended gets padding until all have, so that the other rows draw the random numbers
    that they would draw in `generate`.
    """

    def __init__(
        self,
        sequence: Sequence,
        config: Any,
        start_ids: tuple[int, ...],
        token_texts: TokenTexts,
        model: Any,
    ) -> None:
        """config: a complete generation configuration"""
        settings = sequence.settings
        self.settings = settings
        self.sequence = sequence
        self.token_texts = token_texts
        device = self.device = model.device
        self.eos_ids = frozenset(config.eos_token_id or ())
        self.pad_id: int = config.pad_token_id
        self.start_id = start_ids[-1]
        self.rows: list[list[int]] = [[] for _ in range(sequence.num_rows)]
        self.stopped_at: list[int | None] = [None] * sequence.num_rows  # by a stop text
        self.ended = [False] * sequence.num_rows
        self.parents: Tensor | None = None  # rows keep their place
        self.processors = request_processors(model, config, sequence, start_ids)
        self.generator: torch.Generator | None = None
        if settings.do_sample:
            assert settings.seed is not None
            self.generator = torch.Generator(device=device).manual_seed(settings.seed)
        self.is_greedy = self.generator is None and not len(self.processors)
        self.ids: Any = None  # (rows, tokens so far) int64, if a processor looks
        if len(self.processors):
            start = torch.tensor([start_ids], device=device)
            self.ids = start.repeat(sequence.num_rows, 1)

    def draw_from(self, state: Tensor) -> None:
        """Continue a random stream that the prefill has used. state: of a generator"""
        assert self.generator is not None
        self.generator.set_state(state)

    @property
    def next_ids(self) -> list[int]:
        return [row[-1] if row else self.start_id for row in self.rows]

    def advance(self, logits: Tensor, argmax: list[int]) -> bool:
        """Choose the next token of each row. Returns whether the request has ended.

        logits: (rows, vocab), left unchanged
        argmax: the token with the highest logit of each row, for greedy rows
        """
        if self.is_greedy:
            return self._append(argmax)
        scores = logits.to(torch.float32, copy=True)  # processors may write to it
        if self.ids is not None:
            scores = self.processors(self.ids, scores)
        if self.generator is None:
            return self._append(torch.argmax(scores, dim=-1).tolist())
        return self._append(draw(scores, self.generator)[:, 0].tolist())

    def answers(self) -> list[tuple[list[int], int | None]]:
        return list(zip(self.rows, self.stopped_at, strict=True))

    def _append(self, tokens: list[int]) -> bool:
        """Append a token to each row. Returns whether all rows have ended."""
        for index, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            row.append(self.pad_id if self.ended[index] else token)
            if not self.ended[index]:
                self.ended[index] = self._ends(index, row, token)
        if self.ids is not None:
            newest = torch.tensor(self.next_ids, device=self.device)[:, None]
            self.ids = torch.cat([self.ids, newest], dim=1)
        return all(self.ended)

    def _ends(self, index: int, row: list[int], token: int) -> bool:
        if self.settings.stop and self.token_texts.has_stop_string(self.sequence, row):
            self.stopped_at[index] = len(row)
        return (
            token in self.eos_ids
            or self.stopped_at[index] is not None
            or len(row) >= self.settings.max_new_tokens
        )
