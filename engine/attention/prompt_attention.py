"""Attention within prompts that lie one after the other in a row, in two ways.

Everything else in a layer is computed for the row as it is, without padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.attention.base import Spans

MAX_PADDING = 4  # times as many places as tokens; beyond it a call for each prompt costs less


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
        scale: float,
        position_bias: Tensor | None,
    ) -> Tensor:
        output = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
        output[:, self.spans[-1][1] :] = 0
        for begin, end in self.spans:
            mine = slice(begin, end)
            # By distance alone, so that the bias of a prompt is cut out of that of the row.
            bias = None if position_bias is None else position_bias[:, :, mine, mine]
            attended = scaled_dot_product_attention(
                query[:, :, mine],
                key[:, :, mine],
                value[:, :, mine],
                attn_mask=bias,
                scale=scale,
                is_causal=is_causal,
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
        padded_query, padded_key, padded_value = (
            each[0, :, self.tokens].transpose(0, 1) for each in (query, key, value)
        )
        attended = scaled_dot_product_attention(
            padded_query, padded_key, padded_value, attn_mask=mask, scale=scale,
            is_causal=is_causal, enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        return attended.transpose(1, 2).flatten(0, 1).index_select(0, self.places)[None]
