"""CacheForm: how a model passes its state between steps, where that is no DynamicCache.

xLSTM takes a dict of states, MiniMax-01 keeps them beside its keys, and RecurrentGemma leaves them
on its modules. Each row's states become layers of a JoinedKVCache, as states of fixed size, so that
rows are joined as for any other model. RWKV is not supported: its step mixes the states of rows.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache

from engine.checkpoint.model_state import Freshness
from engine.kv_cache.own_cache.joined_layers import (
    EmptyLayer,
    JoinedLayer,
    LayerContent,
    States,
    contents_of,
)

ModuleState = tuple[nn.Module, str]
"""A module and the name of an attribute of it."""


class CacheForm:
    """The usual form: the model takes and fills a DynamicCache."""

    is_made_by_model = False  # it makes its cache at the first token

    def contents(self, past: Any, num_rows: int = 1) -> list[LayerContent]:
        """Read the states that a forward pass left for so many prompts. Raises UnknownCache."""
        return contents_of(past, num_rows)

    def past_of(self, past: Any, layers: list[JoinedLayer]) -> Any:
        """Return the argument that the model takes for a step.

        past: a DynamicCache of these layers
        """
        return past

    def store(self, layers: list[JoinedLayer]) -> None:
        """Copy a step's results into the layers, unless the model wrote them in place."""


class StatesByLayer(CacheForm):
    """An object with a tuple of states for each layer, written in place (xLSTM)."""

    is_made_by_model = True

    def __init__(self, example: Any) -> None:
        """example: a cache that the model made"""
        self.example = example

    def contents(self, past: Any, num_rows: int = 1) -> list[LayerContent]:
        return [LayerContent(states=numbered(past.rnn_state[at])) for at in sorted(past.rnn_state)]

    def past_of(self, past: Any, layers: list[JoinedLayer]) -> Any:
        made = copy.copy(self.example)
        made.seqlen_offset = self.example.seqlen_offset.clone()
        made.rnn_state = {at: tuple(states_of(each)) for at, each in enumerate(layers)}
        return made


class StatesBesideKeys(CacheForm):
    """A DynamicCache that also has a list of states for some layers (MiniMax-01)."""

    is_made_by_model = True

    def __init__(self, example: Any) -> None:
        self.example = example
        self.made: Any = None

    def contents(self, past: Any, num_rows: int = 1) -> list[LayerContent]:
        beside = [each if isinstance(each, Tensor) else None for each in past.linear_cache]
        contents = []
        for at in range(max(len(beside), len(past.layers))):
            if at < len(beside) and beside[at] is not None:
                contents.append(LayerContent(states=numbered([beside[at]])))
                continue
            keys_only = DynamicCache()
            keys_only.layers = past.layers[at : at + 1]
            contents += contents_of(keys_only, num_rows)
        return contents

    def past_of(self, past: Any, layers: list[JoinedLayer]) -> Any:
        self.made = copy.copy(self.example)
        has_states = [hasattr(each, "recurrent_states") for each in layers]
        self.made.layers = [
            EmptyLayer() if is_state else each
            for each, is_state in zip(layers, has_states, strict=True)
        ]
        self.made.linear_cache = [
            states_of(each)[0] if is_state else []
            for each, is_state in zip(layers, has_states, strict=True)
        ]
        return self.made

    def store(self, layers: list[JoinedLayer]) -> None:
        for layer, state in zip(layers, self.made.linear_cache, strict=True):
            if isinstance(state, Tensor):
                put_states(layer, [state])


class StatesOnModules(CacheForm):
    """A DynamicCache and states that are attributes of the model's modules (RecurrentGemma)."""

    def __init__(self, places: list[ModuleState]) -> None:
        self.places = places

    def contents(self, past: Any, num_rows: int = 1) -> list[LayerContent]:
        return [*contents_of(past, num_rows), LayerContent(states=numbered(self._on_modules()))]

    def past_of(self, past: Any, layers: list[JoinedLayer]) -> Any:
        for (module, name), state in zip(self.places, states_of(layers[-1]), strict=True):
            setattr(module, name, state)
        made: Any = DynamicCache()
        made.layers = layers[:-1]
        return made

    def store(self, layers: list[JoinedLayer]) -> None:
        put_states(layers[-1], self._on_modules())

    def _on_modules(self) -> list[Tensor]:
        return [getattr(module, name) for module, name in self.places]


def numbered(states: Any) -> States:
    return {("recurrent", at): each for at, each in enumerate(states)}


def states_of(layer: Any) -> list[Tensor]:
    return [layer.recurrent_states[at] for at in range(layer.number_of_states)]


def put_states(layer: Any, states: list[Tensor]) -> None:
    for at, each in enumerate(states):
        layer.recurrent_states[at] = each


def form_made_by(past: Any) -> CacheForm | None:
    """The form of a cache that a model made for itself; None if it is unknown."""
    if isinstance(getattr(past, "rnn_state", None), dict):
        return StatesByLayer(past)
    if isinstance(getattr(past, "linear_cache", None), list):
        return StatesBesideKeys(past)
    return None


def form_beside(fresh: Freshness) -> CacheForm:
    """The form of a model that took a DynamicCache, by the attributes that changed on the model."""
    places = states_on(fresh)
    return StatesOnModules(places) if places else CacheForm()


def states_on(fresh: Freshness) -> list[ModuleState]:
    """The module attributes that hold a tensor only after a pass of one row."""
    return [
        (each.owner, name)
        for each in fresh.states
        if isinstance(each.owner, nn.Module)
        for name in sorted(each.changes())
        if isinstance(now := vars(each.owner).get(name), Tensor)
        and now.dim() > 1
        and now.shape[0] == 1
        and not isinstance(each.attributes.get(name), Tensor)
    ]
