"""Length switches: settings that a model changes from some length on, for all rows of a step.

With `longrope` there are two sets of rotary frequencies; with `dynamic` they depend on the length
beyond the switch. A request that stays on one side of the switch uses one set from its first token
to its last, so it may share steps with others on that side. The attention temperature of Llama 4
rises in steps of the length; only rows at the same step may share a pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# The switch in a proof, so short that prompts lie on both sides.
SHORT_SWITCH = 12


@dataclass(frozen=True, slots=True)
class RotarySwitch:
    length: int  # rows of up to this length are before the switch
    has_far_side: bool  # False: each length beyond it has its own frequencies

    def is_crossed(self, num_prompt_tokens: int, num_new_tokens: int) -> bool:
        """Whether a request would cross the switch while it is answered."""
        if num_prompt_tokens + num_new_tokens <= self.length:
            return False
        return not (self.has_far_side and num_prompt_tokens > self.length)


def ropes_of(config: Any) -> list[dict[str, Any]]:
    """The rotary parameters that depend on the length, one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    every = [rope, *(each for each in rope.values() if isinstance(each, dict))]
    return [each for each in every if each.get("rope_type", "default") in ("dynamic", "longrope")]


def rotary_switch_of(config: Any) -> RotarySwitch | None:
    """The length at which rotary frequencies change; None if they do not, or if it is unknown."""
    config = config.get_text_config(decoder=True)
    ropes = ropes_of(config)
    lengths = {
        config.max_position_embeddings
        if each["rope_type"] == "dynamic"
        else each.get("original_max_position_embeddings")
        for each in ropes
    }
    if len(lengths) != 1:
        return None
    (length,) = lengths
    if not isinstance(length, int):
        return None
    return RotarySwitch(length, all(each["rope_type"] == "longrope" for each in ropes))


def temperature_step_of(config: Any) -> int | None:
    """The number of tokens by which the attention temperature rises a step; None: constant."""
    config = config.get_text_config(decoder=True)
    step = getattr(config, "floor_scale", None)
    return step if getattr(config, "attn_temperature_tuning", False) else None


@contextlib.contextmanager
def short_switch(config: Any) -> Iterator[RotarySwitch | None]:
    """Shorten a configuration's switch within the context, so that prompts lie on both sides.

    Yields the shortened switch, or the unchanged one if it cannot be shortened.
    """
    switch = rotary_switch_of(config)
    if switch is None or not switch.has_far_side:
        yield switch
        return
    config = config.get_text_config(decoder=True)
    name = "original_max_position_embeddings"
    noted = [each for each in (vars(config), *ropes_of(config)) if isinstance(each.get(name), int)]
    lengths = [each[name] for each in noted]
    for each in noted:
        each[name] = min(each[name], SHORT_SWITCH)
    try:
        yield rotary_switch_of(config)
    finally:
        for each, length in zip(noted, lengths, strict=True):
            each[name] = length
