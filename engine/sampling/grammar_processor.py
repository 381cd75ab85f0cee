"""GrammarProcessor: masks tokens that a request's grammar forbids, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from engine.core.sequence import Sequence
from engine.text.grammars import Grammar

Tokens = tuple[int, ...]
THINKS: Any = object()  # the state of a row within its thought


class GrammarProcessor(LogitsProcessor):
    """Masks the tokens that a row's grammar forbids; rows without a grammar are unchanged.

    The state of a row is found by its tokens, so beams may be reordered.
    """

    def __init__(self, sequences: tuple[Sequence, ...], num_before: int) -> None:
        """num_before: the number of tokens of a row before its first new one"""
        self.num_before = num_before
        self.grammars = [each.grammar for each in sequences for _ in range(each.num_rows)]
        # Matchers of the previous step, by request and new tokens of a row.
        self.matchers: dict[tuple[int, Tokens], Any] = {}
        self.owners = [each.id for each in sequences for _ in range(each.num_rows)]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask scores. input_ids: (rows, columns) int64; scores: (rows, vocab) float32"""
        followed: dict[tuple[int, Tokens], Any] = {}
        new_ids = input_ids[:, self.num_before :].tolist()
        for row, (owner, grammar) in enumerate(zip(self.owners, self.grammars, strict=True)):
            if grammar is None:
                continue
            tokens = tuple(new_ids[row])
            matcher = followed.get((owner, tokens))
            if matcher is None:
                matcher = followed[owner, tokens] = self._advanced(owner, grammar, tokens)
            if matcher is not None and matcher is not THINKS:
                scores[row] = masked(scores[row], matcher, grammar)
        self.matchers = followed
        return scores

    def _advanced(self, owner: int, grammar: Grammar, tokens: Tokens) -> Any:
        """The matcher after these tokens; THINKS within a thought, None for an ended row."""
        before = self.matchers.get((owner, tokens[:-1])) if tokens else THINKS
        if before is THINKS:
            return grammar.fresh() if grammar.begins_after(tokens) else THINKS
        if before is None or tokens[-1] in grammar.eos_token_ids:
            return None
        matcher = before.deep_copy()  # other beams may continue from it too
        matcher.consume_token(tokens[-1])
        return matcher


def masked(scores: Tensor, matcher: Any, grammar: Grammar) -> Tensor:
    """Set forbidden tokens to minus infinity. scores: (vocab,); returns the same shape"""
    bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    allowed = np.unpackbits(bits, bitorder="little")[: len(scores)].astype(bool)
    allowed = np.pad(allowed, (0, len(scores) - len(allowed)))
    if matcher.is_error() or not allowed.any():
        # No token can continue the answer; the worker will refuse it as invalid.
        allowed[:] = False
        allowed[list(grammar.eos_token_ids)] = True
    is_allowed = torch.from_numpy(allowed).to(scores.device)
    masked_scores = scores.masked_fill(~is_allowed, -torch.inf)
    if torch.isinf(masked_scores).all():
        # Another processor forbids all allowed tokens, for example a ban on repeated quotes.
        return torch.where(is_allowed, 0.0, masked_scores)
    return masked_scores
