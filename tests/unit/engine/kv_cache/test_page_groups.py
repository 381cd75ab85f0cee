"""Layers are divided into groups of equal window and size, with little unused space in a page."""

import pytest

from engine.kv_cache.page_groups import MAX_GROUPS, PageGroup, page_groups


def test_layers_that_see_equally_far_back_are_one_group() -> None:
    assert page_groups(3, ()) == ([PageGroup(None, slice(3))], 3)
    assert page_groups(2, (128, 128)) == ([PageGroup(128, slice(2))], 2)


@pytest.mark.parametrize(
    ("num_windowed", "num_full", "size"),
    [(1, 1, 1), (12, 12, 12), (5, 1, 1), (22, 4, 4), (29, 5, 5), (40, 8, 8), (7, 6, 2), (30, 1, 1)],
)
def test_groups_have_room_for_every_layer_once(num_windowed: int, num_full: int, size: int) -> None:
    windows = (None,) * num_full + (512,) * num_windowed
    groups, layers_a_page = page_groups(len(windows), windows)
    assert layers_a_page == size
    layers = []
    for group in groups:
        assert isinstance(group.layers, list)
        assert len(group.layers) <= size
        assert all(windows[each] == group.window for each in group.layers)
        layers += group.layers
    assert sorted(layers) == list(range(len(windows)))
    assert len(groups) <= MAX_GROUPS or size == num_full
    assert len(groups) * size <= 1.08 * len(windows)
