"""Proof conditions: makes a model's windows as short as the trials' prompts, and restores them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from engine.checkpoint.model_state import Freshness
from engine.runners.length_switches import RotarySwitch, short_switch

# Windows are made as short as this, so that a decoder beside an encoder, which begins with one
# token, crosses them in NUM_STEPS_IF_SLOW.
WINDOW = 2
WINDOWS = ("sliding_window", "attention_chunk_size")
SMALLEST = {name: WINDOW for name in WINDOWS} | {"expert_capacity": 1}


@contextlib.contextmanager
def as_proved(model: Any) -> Iterator[RotarySwitch | None]:
    """Shorten windows and the rotary switch within the context; restore the model after."""
    fresh = Freshness(model)
    try:
        with (
            short_windows_everywhere(model),
            short_switch(model.config) as switch,
            torch.inference_mode(),
        ):
            yield switch
    finally:
        with torch.inference_mode():
            fresh.restore()


@contextlib.contextmanager
def renewing_to(runner: Any, model: Any) -> Iterator[None]:
    """Let a runner that restores its model before each prompt restore it with short windows."""
    before = getattr(runner, "freshness", None)
    if before is None:
        yield
        return
    runner.freshness = Freshness(model)
    try:
        yield
    finally:
        runner.freshness = before


@contextlib.contextmanager
def short_windows_everywhere(model: Any) -> Iterator[None]:
    """Shorten windows, and the capacity of experts, in every configuration and module."""
    owners = [model.config, model.config.get_text_config(decoder=True)]
    for module in model.modules():
        owners += [module, getattr(module, "config", module)]
    noted = [
        (vars(owner), name, size)
        for owner in {id(each): each for each in owners}.values()
        for name in SMALLEST
        if isinstance(size := vars(owner).get(name), int) and not isinstance(size, bool)
    ]
    for attributes, name, size in noted:
        attributes[name] = min(size, SMALLEST[name])
    try:
        yield
    finally:
        for attributes, name, size in noted:
            attributes[name] = size
