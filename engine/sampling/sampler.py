"""Sampler: the next token of each row of one request, greedy or drawn, as `generate` does.

Each request has processors, a generator and stop texts of its own, which see its rows and
no others. So what shares a step with it cannot matter.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from engine.core.sequence import Sequence
from engine.text.stop_strings import TokenTexts

LOOKS_AT_THE_PROMPT = ("encoder_repetition_penalty", "encoder_no_repeat_ngram_size")


def processors(
    model: Any, config: Any, sequence: Sequence, start_ids: tuple[int, ...]
) -> LogitsProcessorList:
    """Those that `generate` makes of a complete generation configuration for one request,
    in its order, the warpers of sampling included.

    start_ids: what is in a row before the first new token
    """
    device = model.device
    eos_ids = config.eos_token_id
    config = copy.copy(config)
    config.max_length = len(start_ids) + config.max_new_tokens
    config._eos_token_tensor = None if eos_ids is None else torch.tensor(eos_ids, device=device)
    prompt = None
    if any(getattr(config, name, None) is not None for name in LOOKS_AT_THE_PROMPT):
        prompt = torch.tensor([sequence.prompt_ids], device=device)
    listed: LogitsProcessorList = model._get_logits_processor(
        config,
        input_ids_seq_length=len(start_ids),
        encoder_input_ids=prompt,
        device=str(device),
    )
    return listed


class Sampler:
    """Rows of one request live and die together: one that has ended is fed padding until
    the last has, so that the draws of the others are those of `generate`."""

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
        self.reordered: Tensor | None = None  # rows keep their place
        self.processors = processors(model, config, sequence, start_ids)
        self.generator: torch.Generator | None = None
        if settings.do_sample:
            assert settings.seed is not None
            self.generator = torch.Generator(device=device).manual_seed(settings.seed)
        self.ids: Any = None  # (rows, columns so far) int64, if a processor looks
        if len(self.processors):
            start = torch.tensor([start_ids], device=device)
            self.ids = start.repeat(sequence.num_rows, 1)

    @property
    def is_plain(self) -> bool:
        """Return whether the next token is the one with the highest logit."""
        return self.generator is None and not len(self.processors)

    @property
    def next_ids(self) -> list[int]:
        """What the model reads next, by row."""
        return [row[-1] if row else self.start_id for row in self.rows]

    def choose(self, logits: Tensor) -> bool:
        """logits: (rows, vocab) float32, may be written to; returns whether all rows ended."""
        scores = logits if self.ids is None else self.processors(self.ids, logits)
        if self.generator is None:
            return self.take(torch.argmax(scores, dim=-1).tolist())
        probabilities = torch.softmax(scores, dim=-1)
        drawn = torch.multinomial(probabilities, num_samples=1, generator=self.generator)
        return self.take(drawn[:, 0].tolist())

    def take(self, tokens: list[int]) -> bool:
        """The chosen token of each row; returns whether all rows ended."""
        for index, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            row.append(self.pad_id if self.ended[index] else token)
            if not self.ended[index]:
                self.ended[index] = self._ends(index, row, token)
        if self.ids is not None:
            newest = torch.tensor(self.next_ids, device=self.device)[:, None]
            self.ids = torch.cat([self.ids, newest], dim=1)
        return all(self.ended)

    def answers(self) -> list[tuple[list[int], int | None]]:
        """New tokens of each returned row, and how many it had when it said a stop text."""
        return list(zip(self.rows, self.stopped_at, strict=True))

    def _ends(self, index: int, row: list[int], token: int) -> bool:
        if self.settings.stop and self.token_texts.has_stop_string(self.sequence, row):
            self.stopped_at[index] = len(row)
        return (
            token in self.eos_ids
            or self.stopped_at[index] is not None
            or len(row) >= self.settings.max_new_tokens
        )
