"""PaddedPrefill: prompts that lie one after the other in a row, attended to in one call.

A GPU had rather attend to some padding than be called for each prompt. Everything else in a
layer is done to the row as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.attention.base import Spans

MAX_FILLED_UP = 4  # times as many places as tokens; beyond it a call for each costs less


@dataclass(frozen=True, slots=True)
class PaddedPrefill:
    tokens: Tensor  # (prompts, longest): where in the row each token is; any where there is none
    is_hidden: Tensor  # (prompts, longest): where there is none
    places: Tensor  # (tokens,): where in the first, counted through, each token of the row is

    @classmethod
    def of(cls, spans: Spans, device: torch.device) -> PaddedPrefill | None:
        """None if too much would have to be filled up."""
        lengths = [end - begin for begin, end in spans]
        longest = max(lengths)
        if longest * len(spans) > MAX_FILLED_UP * sum(lengths):
            return None
        begins = torch.tensor([begin for begin, _ in spans])[:, None]
        at = torch.arange(longest)[None]
        is_hidden = at >= torch.tensor(lengths)[:, None]
        tokens = (begins + at).masked_fill(is_hidden, 0)
        places = (~is_hidden).view(-1).nonzero()[:, 0]
        return cls(tokens.to(device), is_hidden.to(device), places.to(device))

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        is_causal: bool,
        scale: float | None,
        bias: Tensor | None,
    ) -> Tensor:
        """query, key, value: (1, heads, tokens, head size); those of keys may be fewer
        bias: (1, heads, tokens, tokens), by distance alone
        returns: (1, tokens, heads, head size)
        """
        mask = None
        if not is_causal:  # where a prompt ends does not matter to who looks back only
            is_hidden = self.is_hidden[:, None, None]
            longest = self.tokens.shape[1]
            mask = ~is_hidden
            if bias is not None:
                mask = bias[:, :, :longest, :longest].masked_fill(is_hidden, -torch.inf)
        asked, keys, values = (
            each[0, :, self.tokens].transpose(0, 1) for each in (query, key, value)
        )
        attended = scaled_dot_product_attention(
            asked, keys, values, attn_mask=mask, scale=scale, is_causal=is_causal,
            enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        filled_up = attended.transpose(1, 2).flatten(0, 1)
        return filled_up.index_select(0, self.places)[None]
