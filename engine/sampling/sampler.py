"""Sampler: the next token of each row of one request, greedy or drawn, as `generate` does.

Each request has processors, a generator and stop texts of its own, which see its rows and
no others. So what shares a step with it cannot matter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from engine.core.sequence import Sequence
from engine.sampling.batched_generate import has_stop_string, warpers


def processors(config: Any, num_before: int, device: torch.device) -> LogitsProcessorList:
    """Those of `transformers` that a complete generation configuration asks for, in its order.

    num_before: tokens in a row before the first new one
    """
    listed = LogitsProcessorList()
    eos_ids = config.eos_token_id
    if config.repetition_penalty != 1.0:
        listed.append(RepetitionPenaltyLogitsProcessor(float(config.repetition_penalty)))
    if config.no_repeat_ngram_size > 0:
        listed.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    if config.bad_words_ids is not None:
        listed.append(NoBadWordsLogitsProcessor(config.bad_words_ids, eos_ids))
    if config.min_new_tokens > 0 and eos_ids is not None:
        listed.append(
            MinNewTokensLengthLogitsProcessor(
                num_before, config.min_new_tokens, eos_ids, device=str(device)
            )
        )
    if config.forced_bos_token_id is not None:
        listed.append(ForcedBOSTokenLogitsProcessor(config.forced_bos_token_id))
    if config.forced_eos_token_id is not None:
        listed.append(
            ForcedEOSTokenLogitsProcessor(
                num_before + config.max_new_tokens, config.forced_eos_token_id, device=str(device)
            )
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
        tokenizer: Any,
        device: torch.device,
    ) -> None:
        """config: a complete generation configuration"""
        settings = sequence.settings
        self.settings = settings
        self.tokenizer = tokenizer
        self.device = device
        self.eos_ids = frozenset(config.eos_token_id or ())
        self.pad_id: int = config.pad_token_id
        self.start_id = start_ids[-1]
        self.rows: list[list[int]] = [[] for _ in range(sequence.num_rows)]
        self.stopped_at: list[int | None] = [None] * sequence.num_rows  # by a stop text
        self.ended = [False] * sequence.num_rows
        self.reordered: Tensor | None = None  # rows keep their place
        self.processors = processors(config, len(start_ids), device)
        self.generator: torch.Generator | None = None
        if settings.do_sample:
            assert settings.seed is not None
            self.generator = torch.Generator(device=device).manual_seed(settings.seed)
            self.processors.extend(warpers(settings, config, device))
        self.ids: Any = None  # (rows, columns so far) int64, if a processor looks
        if len(self.processors):
            start = torch.tensor([start_ids], device=device)
            self.ids = start.repeat(sequence.num_rows, 1)

    @property
    def is_plain(self) -> bool:
        """Whether the token with the argmax logit is the choice."""
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
        if self.settings.stop and has_stop_string(self.tokenizer, self.settings.stop, row):
            self.stopped_at[index] = len(row)
        return (
            token in self.eos_ids
            or self.stopped_at[index] is not None
            or len(row) >= self.settings.max_new_tokens
        )
