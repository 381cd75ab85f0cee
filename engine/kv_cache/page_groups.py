"""PageGroup: layers that share the pages of a PagedKVCache.

All pages have one size, so that a freed page serves any group. Layers with the same window are
split into groups of equally many layers, and each token of a row has a slot in a page of every
group.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.kv_cache.layer_group import LayerNumbers, layer_numbers, layers_by_window

# Each has a table of token slots, which a step reads.
MAX_GROUPS = 12


@dataclass(frozen=True, slots=True)
class PageGroup:
    window: int | None
    layers: LayerNumbers


def page_groups(num_layers: int, windows: tuple[int | None, ...]) -> tuple[list[PageGroup], int]:
    """Return the groups of a model's layers, and the number of layers that a page has room for.

    That number leaves the least memory unused. windows: of each layer; (): no layer has one
    """
    by_window = layers_by_window(num_layers, windows)
    if len(by_window) == 1:
        return [PageGroup(*each) for each in by_window.items()], num_layers
    layers_of = {window: layer_numbers(num_layers, layers) for window, layers in by_window.items()}

    def num_groups(size: int) -> int:
        return sum(-(-len(each) // size) for each in layers_of.values())

    largest = min(map(len, layers_of.values()))
    sizes = [size for size in range(1, largest + 1) if num_groups(size) <= MAX_GROUPS] or [largest]
    size = min(sizes, key=lambda each: (each * num_groups(each), -each))
    return [
        PageGroup(window, layers[at : at + size])
        for window, layers in layers_of.items()
        for at in range(0, len(layers), size)
    ], size
