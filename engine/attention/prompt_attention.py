"""Attention within prompts that are concatenated in one row: prompt by prompt, or padded.

The rest of a layer is computed for the row as it is, without padding. Where the start of a prompt
is in the cache, the row holds only the rest of the prompt: the queries are of that rest and the
keys of the whole prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.attention.base import Scoring, Spans

MAX_PADDING = 4  # padded size over tokens; beyond it one call for each prompt costs less
# The queries of a block where a mask is needed, so that a long prompt needs no mask as large as
# its square; a window may make it larger.
BLOCK_TOKENS = 256


@dataclass(frozen=True, slots=True)
class SeparatePrompts:
    """Makes one attention call for each prompt, without padding."""

    spans: Spans
    starts: tuple[int, ...] = ()  # tokens of each prompt that are in its cache; (): none

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        is_causal: bool,
        scoring: Scoring,
        position_bias: Tensor | None,
    ) -> Tensor:
        output = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
        output[:, self.spans[-1][1] :] = 0
        starts = starts_seen(self.starts or (0,) * len(self.spans), scoring.window)
        all_keys = key_spans(self.spans, starts)
        for at, ((begin, end), start) in enumerate(zip(self.spans, starts, strict=True)):
            mine, all_mine = slice(begin, end), slice(*all_keys[at])
            # The bias depends on distance alone, so a prompt's is a block of the row's.
            bias = None if position_bias is None else position_bias[:, :, mine, mine]
            assert not start or (is_causal and position_bias is None)
            attended = attend_within(
                query[:, :, mine], key[:, :, all_mine], value[:, :, all_mine], is_causal, scoring,
                bias, start,
            )  # fmt: skip
            output[:, mine] = attended.transpose(1, 2)
        return output


@dataclass(frozen=True, slots=True)
class PaddedPrompts:
    """Makes one attention call for all prompts, padded to the longest.

    On a GPU some padding costs less than a call for each prompt.
    """

    tokens: Tensor  # (prompts, longest): the place of each token in the row; any for padding
    is_padding: Tensor  # (prompts, longest)
    places: Tensor  # (tokens of the row,): the place of each in flattened `tokens`; 0 for padding
    # Where the start of a prompt is not in the row:
    key_tokens: Tensor | None = None  # (prompts, longest): where among the keys each token is
    seen: Tensor | None = None  # (prompts, 1, longest in the row, longest): by each token

    @classmethod
    def of(
        cls, spans: Spans, num_tokens: int, device: torch.device, starts: tuple[int, ...] = ()
    ) -> PaddedPrompts | None:
        """Lay out the prompts; None if there would be too much padding.

        num_tokens: of the row
        starts:     the number of tokens of each prompt that are in its cache; (): none
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
        # A padding query attends to the columns before it too: without any its result would be NaN.
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
        scoring: Scoring,
        position_bias: Tensor | None,
    ) -> Tensor:
        mask = None
        if not is_causal:  # under a causal mask no token attends to the padding after it
            is_padding = self.is_padding[:, None, None]
            longest = self.tokens.shape[1]
            mask = ~is_padding
            if position_bias is not None:
                bias = position_bias[:, :, :longest, :longest]
                mask = bias.masked_fill(is_padding, -torch.inf)
        key_tokens = self.tokens if self.key_tokens is None else self.key_tokens
        padded_query = query[0, :, self.tokens].transpose(0, 1)
        padded_key, padded_value = (each[0, :, key_tokens].transpose(0, 1) for each in (key, value))
        if self.seen is not None:
            assert scoring.window is None
            attended = attend_masked(padded_query, padded_key, padded_value, self.seen, scoring)
        else:
            attended = attend_within(
                padded_query, padded_key, padded_value, is_causal, scoring, mask
            )
        return attended.transpose(1, 2).flatten(0, 1).index_select(0, self.places)[None]


def attend_within(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool,
    scoring: Scoring,
    mask: Tensor | None,
    start: int = 0,
) -> Tensor:
    """Let the tokens of prompts attend to each other.

    query, key, value: (prompts, heads, tokens, head size)
    mask:    broadcastable to (prompts, query heads, tokens, tokens); bool, or added to the scores
             where there is no window; None where `is_causal`
    start:   the number of tokens before the first query, whose keys come first; 0 unless
             `is_causal`
    returns: (prompts, query heads, tokens, head size)
    """
    num_tokens, num_keys, window = query.shape[2], key.shape[2], scoring.window
    has_window = window is not None and window < num_keys
    if scoring.is_usual and not has_window and not start:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scoring.scale, is_causal=is_causal,
            enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
    block = max(BLOCK_TOKENS, window or 0)
    at = torch.arange(num_keys, device=query.device)
    attended = []
    for begin in range(0, num_tokens, block):
        end = min(begin + block, num_tokens)
        begin_at, end_at = start + begin, start + end
        first = 0 if window is None else max(begin_at - window, 0)
        # In an encoder the window extends in both directions and does not count the token itself.
        ahead = num_keys if window is None else window
        last = end_at if is_causal else min(end_at + ahead, num_keys)
        back = at[begin_at:end_at, None] - at[first:last]
        is_seen = back >= 0 if is_causal else torch.ones_like(back, dtype=torch.bool)
        if window is not None:
            is_seen &= back < window if is_causal else back.abs() <= window
        if mask is not None:
            rows = slice(begin, end) if mask.shape[2] > 1 else slice(None)
            is_seen = is_seen & mask[:, :, rows, first:last]
        keys, values = key[:, :, first:last], value[:, :, first:last]
        attended.append(attend_masked(query[:, :, begin:end], keys, values, is_seen, scoring))
    return torch.cat(attended, dim=2)


def attend_masked(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scoring: Scoring
) -> Tensor:
    """Attend with the given scoring; the mask already contains the window.

    query:        (rows, query heads, tokens, head size)
    keys, values: (rows, heads, columns, head size)
    mask:         bool, broadcastable to (rows, 1, tokens, columns); None: nothing is masked
    returns:      (rows, query heads, tokens, head size)
    """
    if scoring.is_usual:
        return scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=scoring.scale,
            enable_gqa=query.shape[1] != keys.shape[1],
        )  # fmt: skip
    # Query heads that share a key head are a dimension of their own: no key is repeated.
    grouped = query.unflatten(1, (keys.shape[1], -1))
    scores = (grouped @ keys[:, :, None].transpose(-1, -2)).float() * scoring.scale
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    if mask is not None:
        is_seen = mask if mask.dim() < 4 else mask[:, :, None]
        scores = scores.masked_fill(~is_seen, -torch.inf)
    if scoring.sinks is not None:
        sinks = scoring.sinks.float().view(keys.shape[1], -1, 1, 1)
        scores = torch.cat([scores, sinks.expand(*scores.shape[:-1], 1)], dim=-1)
        weights = scores.softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    return (weights.to(values.dtype) @ values[:, :, None]).flatten(1, 2)


def starts_of(caches: Iterable[Any]) -> tuple[int, ...]:
    """The number of prompt tokens in each cache; () if all caches are empty."""
    starts = tuple(each.length for each in caches)
    return starts if any(starts) else ()


def starts_seen(starts: tuple[int, ...], window: int | None) -> tuple[int, ...]:
    """The number of cached tokens of each prompt that a layer with this window can see."""
    return starts if window is None else tuple(min(each, window) for each in starts)


def key_spans(spans: Spans, starts: tuple[int, ...]) -> Spans:
    """The span of each prompt's keys when the keys of whole prompts are concatenated."""
    if not starts:
        return spans
    lengths = (start + end - begin for start, (begin, end) in zip(starts, spans, strict=True))
    return tuple(pairwise(accumulate(lengths, initial=0)))
