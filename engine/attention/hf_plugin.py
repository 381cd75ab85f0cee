"""The attention functions that the in-flight backend registers with `transformers`.

Within a `forward_context` they call our backends. Outside, as in `model.generate`, they call the
model's original attention.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from engine.attention.base import Scoring, usual_scale
from engine.attention.forward_context import ForwardContext, current

OF_SDPA, OF_EAGER = "tidemill", "tidemill_eager"
# Our name for each implementation that a model may be loaded with.
NAMES = {"sdpa": OF_SDPA, "eager": OF_EAGER}
# Keyword arguments that do not affect attention here: dropout is off, and a step has its own masks
# and positions.
WITHOUT_A_SAY = frozenset(
    {
        "cache_position", "dropout", "head_mask", "output_attentions", "output_hidden_states",
        "output_router_logits",
        "position_embeddings", "position_ids", "return_dict", "use_cache",
    }
)  # fmt: skip


class UnknownAttention(Exception):
    """A model's attention does something that no backend supports; the message names it."""


def install(model: Any) -> None:
    """Replace a model's attention function by ours. Raises UnknownAttention."""
    own = model.config._attn_implementation
    if own in NAMES.values():
        return
    if own not in NAMES:
        raise UnknownAttention(f"its attention is {own}")
    if own == "eager":
        for each in attention_modules(model):
            eager_attention_of(type(each))
    for name, attend, mask in (
        (OF_SDPA, attention, sdpa_mask),
        (OF_EAGER, attention_of_eager, eager_mask),
    ):
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, mask)
    rename(model, NAMES)


def uninstall(model: Any) -> None:
    """Restore the attention function from before `install`."""
    rename(model, {ours: own for own, ours in NAMES.items()})


def rename(model: Any, names: dict[str, str]) -> None:
    """Change the attention implementation in every configuration of a model.

    `set_attn_implementation` does not reach the copies that the stacks of T5 have.
    """
    configs = {id(each.config): each.config for each in model.modules() if hasattr(each, "config")}
    for config in configs.values():
        new = names.get(getattr(config, "_attn_implementation", None) or "")
        if new is not None:
            config._attn_implementation_internal = new


def attention_modules(model: Any) -> list[Any]:
    return [each for each in model.modules() if isinstance(getattr(each, "layer_idx", None), int)]


def eager_attention_of(module_type: type) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Return the eager attention function of a module's source file. Raises UnknownAttention."""
    found = getattr(sys.modules[module_type.__module__], "eager_attention_forward", None)
    if found is None:
        raise UnknownAttention(f"{module_type.__name__} attends by code of its own")
    return found  # type: ignore[no-any-return]  # a function of transformers


def attention_over(own_attention: Callable[[Any], Callable[..., Any]]) -> Callable[..., Any]:
    """Return an attention function that uses the forward context, if there is one.

    own_attention: returns a module's original attention function, used without a context
    returns:       a function of a query, (rows, heads, tokens, head size), and its keys and values;
                   returns (rows, tokens, heads, head size) and None
    """

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        forward_context: ForwardContext | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        context = forward_context or current()
        if context is None:
            own = own_attention(module)
            return own(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
        return attend_in(context, module, query, key, value, **kwargs), None

    return attention


attention = attention_over(lambda module: sdpa_attention_forward)
attention_of_eager = attention_over(lambda module: eager_attention_of(type(module)))


def attend_in(
    context: ForwardContext,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> Tensor:
    """Attend by a forward context with the keyword arguments that a model passes.

    query:      (rows, query heads, tokens, head size)
    key, value: (rows, heads, tokens, head size)
    returns:    (rows, tokens, query heads, head size)
    raises:     UnknownAttention for a keyword argument that could change the result
    """
    unknown = [
        name for name, given in others.items() if given is not None and name not in WITHOUT_A_SAY
    ]
    if unknown:
        raise UnknownAttention(f"its attention is given {', '.join(sorted(unknown))}")
    scale = usual_scale(query.shape[-1]) if scaling is None else scaling
    scoring = Scoring(scale, sliding_window, softcap, s_aux)
    # The layers of an encoder have no number, and need none.
    layer = getattr(module, "layer_idx", None) or 0
    return context.attend(layer, query, key, value, scoring, position_bias)
