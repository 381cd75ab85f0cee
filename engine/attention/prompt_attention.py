"""Attention within prompts that lie one after the other in a row, in two ways.

Everything else in a layer is computed for the row as it is, without padding. The row may hold only
the rest of a prompt, whose start is in the cache: its queries are those of the rest, its keys those
of the whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.attention.base import Spans

MAX_PADDING = 4  # times as many places as tokens; beyond it a call for each prompt costs less


@dataclass(frozen=True, slots=True)
class SeparatePrompts:
    """A call for each prompt, which computes nothing that it need not."""

    spans: Spans
    starts: tuple[int, ...] = ()  # the tokens of each that are not in the row; (): none
    # By the number of the prompt; all layers have the same.
    masks: dict[int, Tensor] = field(default_factory=dict, compare=False)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        is_causal: bool,
        scale: float,
        position_bias: Tensor | None,
    ) -> Tensor:
        output = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
        output[:, self.spans[-1][1] :] = 0
        starts = self.starts or (0,) * len(self.spans)
        all_keys = key_spans(self.spans, self.starts)
        for at, ((begin, end), start) in enumerate(zip(self.spans, starts, strict=True)):
            mine, all_mine = slice(begin, end), slice(*all_keys[at])
            # By distance alone, so that the bias of a prompt is cut out of that of the row.
            bias = None if position_bias is None else position_bias[:, :, mine, mine]
            if start:
                assert is_causal
                assert position_bias is None
                if at not in self.masks:
                    self.masks[at] = seen_from(start, end - begin, query.device)
                bias = self.masks[at]
            attended = scaled_dot_product_attention(
                query[:, :, mine],
                key[:, :, all_mine],
                value[:, :, all_mine],
                attn_mask=bias,
                scale=scale,
                is_causal=is_causal and not start,
                enable_gqa=query.shape[1] != key.shape[1],
            )
            output[:, mine] = attended.transpose(1, 2)
        return output


@dataclass(frozen=True, slots=True)
class PaddedPrompts:
    """One call for all prompts, the shorter ones padded: a GPU loses less by some padding than by
    a call for each."""

    tokens: Tensor  # (prompts, longest): where in the row each token is; any where there is none
    is_padding: Tensor  # (prompts, longest)
    places: Tensor  # (tokens of the row,): where in `tokens`, flattened, each is; 0 behind the last
    # Where the start of a prompt is not in the row:
    key_tokens: Tensor | None = None  # (prompts, longest): where among the keys each token is
    seen: Tensor | None = None  # (prompts, 1, longest in the row, longest): by each token

    @classmethod
    def of(
        cls, spans: Spans, num_tokens: int, device: torch.device, starts: tuple[int, ...] = ()
    ) -> PaddedPrompts | None:
        """None if there would be too much padding.

        num_tokens: of the row
        starts:     the tokens of each prompt that are not in the row; (): none
        """
        lengths = [end - begin for begin, end in spans]
        longest = max(lengths)
        if longest * len(spans) > MAX_PADDING * sum(lengths):
            return None
        begins = torch.tensor([begin for begin, _ in spans])[:, None]
        at = torch.arange(longest)[None]
        is_padding = at >= torch.tensor(lengths)[:, None]
        tokens = (begins + at).masked_fill(is_padding, 0)
        places = torch.zeros(num_tokens, dtype=torch.int64)
        places[: sum(lengths)] = (~is_padding).view(-1).nonzero()[:, 0]
        made = cls(tokens.to(device), is_padding.to(device), places.to(device))
        if not starts:
            return made
        spans_of_keys = key_spans(spans, starts)
        longest_keys = max(end - begin for begin, end in spans_of_keys)
        if longest_keys * len(spans) > MAX_PADDING * spans_of_keys[-1][1]:
            return None
        column = torch.arange(longest_keys)[None]
        is_there = column < torch.tensor([end - begin for begin, end in spans_of_keys])[:, None]
        key_tokens = torch.tensor([begin for begin, _ in spans_of_keys])[:, None] + column
        # A query that pads sees the columns before it, too: one that sees none is NaN.
        last = torch.tensor(starts)[:, None] + at
        return replace(
            made,
            key_tokens=key_tokens.where(is_there, 0).to(device),
            seen=(column[:, None] <= last[:, :, None])[:, None].to(device),
        )

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        is_causal: bool,
        scale: float,
        position_bias: Tensor | None,
    ) -> Tensor:
        mask = None
        if not is_causal:  # a token that looks back only never sees the padding behind it
            is_padding = self.is_padding[:, None, None]
            longest = self.tokens.shape[1]
            mask = ~is_padding
            if position_bias is not None:
                bias = position_bias[:, :, :longest, :longest]
                mask = bias.masked_fill(is_padding, -torch.inf)
        if self.seen is not None:
            mask, is_causal = self.seen, False
        key_tokens = self.tokens if self.key_tokens is None else self.key_tokens
        padded_query = query[0, :, self.tokens].transpose(0, 1)
        padded_key, padded_value = (each[0, :, key_tokens].transpose(0, 1) for each in (key, value))
        attended = scaled_dot_product_attention(
            padded_query, padded_key, padded_value, attn_mask=mask, scale=scale,
            is_causal=is_causal, enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        return attended.transpose(1, 2).flatten(0, 1).index_select(0, self.places)[None]


def starts_of(caches: Iterable[Any]) -> tuple[int, ...]:
    """The number of tokens that each cache has of its prompt; () if none has any."""
    starts = tuple(each.length for each in caches)
    return starts if any(starts) else ()


def key_spans(spans: Spans, starts: tuple[int, ...]) -> Spans:
    """Where the keys of each prompt are, if those of whole prompts lie one after the other."""
    if not starts:
        return spans
    lengths = (start + end - begin for start, (begin, end) in zip(starts, spans, strict=True))
    return tuple(pairwise(accumulate(lengths, initial=0)))


def seen_from(start: int, num_tokens: int, device: torch.device) -> Tensor:
    """(tokens, start + tokens) bool: which of a prompt's tokens each of its last ones sees."""
    ones = torch.ones((num_tokens, start + num_tokens), dtype=torch.bool, device=device)
    return ones.tril(start)
