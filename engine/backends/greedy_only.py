"""Greedy: what an engine that takes the likeliest token, and knows nothing else, refuses by name.

Its libraries know more settings, under like names; none of them is known to give the tokens
of `model.generate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.backends.attended_settings import INERT, NEUTRAL
from engine.errors import UnsupportedParameter
from engine.sampling.resolve_params import SETTINGS, ResolvedParams

# What a request may have to be greedy: anything else could change the tokens.
GREEDY = ResolvedParams(max_new_tokens=1)
FREE = ("max_new_tokens", "min_new_tokens", "seed", "temperature", "top_k", "top_p")
IDLE_WITHOUT_BEAMS = ("length_penalty", "early_stopping")


def refuse_unless_greedy(settings: ResolvedParams, library: str) -> None:
    """Raises UnsupportedParameter with the first that is not."""
    for name in SETTINGS:
        if name in FREE or name in IDLE_WITHOUT_BEAMS:
            continue
        value, wanted = getattr(settings, name), getattr(GREEDY, name)
        if name == "stop" and value:
            # A special token among them too. They are a user's text, and so not repeated.
            raise UnsupportedParameter(
                name,
                f"an answer that ends at a text is not known to be exact with {library}; leave "
                'it out, or use engine = "auto" for the model',
            )
        if value != wanted:
            raise UnsupportedParameter(
                name,
                f"{value!r} is not known to be exact with {library}; ask for {wanted!r}, "
                'or use engine = "auto" for the model',
            )


def not_attended_to(own: Mapping[str, Any], attended_to: frozenset[str]) -> str | None:
    """The first setting of a checkpoint's own that would be passed over and has a say."""
    for name, value in own.items():
        known = name in attended_to or name in INERT or value == NEUTRAL.get(name)
        if value is not None and not known:
            return name
    return None


def with_forced_end(row: list[int], max_tokens: int, forced: int | list[int] | None) -> list[int]:
    """A checkpoint may want its end as the last token that fits; nothing follows it, so
    that it can be put there afterwards."""
    if forced is None or len(row) < max_tokens:
        return row
    return [*row[: max_tokens - 1], forced if isinstance(forced, int) else forced[0]]
