"""Attention within prompts that lie one after the other in a row, in two ways.

Everything else in a layer is computed for the row as it is, without padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.attention.base import Scoring, Spans

MAX_PADDING = 4  # times as many places as tokens; beyond it a call for each prompt costs less
# The queries of a block where a mask is needed, so that a long prompt needs no mask as large as
# its square; a window may make it larger.
BLOCK_TOKENS = 256


@dataclass(frozen=True, slots=True)
class SeparatePrompts:
    """A call for each prompt, which computes nothing that it need not."""

    spans: Spans

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
        for begin, end in self.spans:
            mine = slice(begin, end)
            # By distance alone, so that the bias of a prompt is cut out of that of the row.
            bias = None if position_bias is None else position_bias[:, :, mine, mine]
            attended = attend_within(
                query[:, :, mine], key[:, :, mine], value[:, :, mine], is_causal, scoring, bias
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

    @classmethod
    def of(cls, spans: Spans, num_tokens: int, device: torch.device) -> PaddedPrompts | None:
        """None if there would be too much padding. num_tokens: of the row"""
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
        return cls(tokens.to(device), is_padding.to(device), places.to(device))

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
        if not is_causal:  # a token that looks back only never sees the padding behind it
            is_padding = self.is_padding[:, None, None]
            longest = self.tokens.shape[1]
            mask = ~is_padding
            if position_bias is not None:
                bias = position_bias[:, :, :longest, :longest]
                mask = bias.masked_fill(is_padding, -torch.inf)
        padded_query, padded_key, padded_value = (
            each[0, :, self.tokens].transpose(0, 1) for each in (query, key, value)
        )
        attended = attend_within(padded_query, padded_key, padded_value, is_causal, scoring, mask)
        return attended.transpose(1, 2).flatten(0, 1).index_select(0, self.places)[None]


def attend_within(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool,
    scoring: Scoring,
    mask: Tensor | None,
) -> Tensor:
    """Let the tokens of prompts attend to each other.

    query, key, value: (prompts, heads, tokens, head size)
    mask:    (prompts, query heads, 1 or tokens, tokens) or less; bool, or added where there is
             no window; None where `is_causal`
    returns: (prompts, query heads, tokens, head size)
    """
    num_tokens, window = query.shape[2], scoring.window
    has_window = window is not None and window < num_tokens
    if scoring.is_usual and not has_window:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scoring.scale, is_causal=is_causal,
            enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
    block = max(BLOCK_TOKENS, window or 0)
    at = torch.arange(num_tokens, device=query.device)
    attended = []
    for begin in range(0, num_tokens, block):
        end = min(begin + block, num_tokens)
        first = 0 if window is None else max(begin - window, 0)
        # Both ways an encoder sees as far as its window says, itself not counted.
        last = end if is_causal else num_tokens if window is None else min(end + window, num_tokens)
        back = at[begin:end, None] - at[first:last]
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
    """Attend as `scoring` says, but for its window, which is in the mask.

    query:        (rows, query heads, tokens, head size)
    keys, values: (rows, heads, columns, head size)
    mask:         bool, of a shape that goes with (rows, 1, tokens, columns); None: all are seen
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
