"""The parameters that a greedy-only backend (vLLM, CTranslate2) refuses by name.

The libraries have more settings, under similar names; none of them is known to give the tokens of
`model.generate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.backends.supported_settings import INERT, NEUTRAL
from engine.errors import UnsupportedParameter
from engine.sampling.resolve_params import SETTINGS, ResolvedParams

# The settings of a greedy request; any other value could change the tokens.
GREEDY = ResolvedParams(max_new_tokens=1)
FREE = ("max_new_tokens", "min_new_tokens", "seed", "temperature", "top_k", "top_p")
IDLE_WITHOUT_BEAMS = ("length_penalty", "early_stopping")


def refuse_unless_greedy(settings: ResolvedParams, library: str) -> None:
    """Raise UnsupportedParameter for the first setting that is not greedy."""
    for name in SETTINGS:
        if name in FREE or name in IDLE_WITHOUT_BEAMS:
            continue
        value, wanted = getattr(settings, name), getattr(GREEDY, name)
        if name == "stop" and value:
            # Special tokens as well. A stop string is a user's text, so the message does not quote
            # it.
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
    """The first of a checkpoint's settings that matters and that the library would ignore."""
    for name, value in own.items():
        known = name in attended_to or name in INERT or value == NEUTRAL.get(name)
        if value is not None and not known:
            return name
    return None


def with_forced_end(row: list[int], max_tokens: int, forced: int | list[int] | None) -> list[int]:
    """Put the checkpoint's forced last token at the end of a row that has the maximal length.

    No token follows it, so it can be written after generation.
    """
    if forced is None or len(row) < max_tokens:
        return row
    return [*row[: max_tokens - 1], forced if isinstance(forced, int) else forced[0]]
