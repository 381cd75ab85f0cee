"""What is found of a prompt is what was kept of one that begins with the same tokens."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvariantBroken
from engine.kv_cache import prefix_cache
from engine.kv_cache.base import KVShape
from engine.kv_cache.contiguous import BLOCK_TOKENS, ContiguousKVCache
from engine.kv_cache.paged import PAGE_TOKENS, PagedKVCache
from engine.kv_cache.prefix_cache import PrefixCache

SIZE = 4


def prompt(*blocks: int, more: int = 0) -> tuple[int, ...]:
    """A prompt whose blocks are these, and some more tokens."""
    return tuple(each for block in blocks for each in [block] * SIZE) + tuple(range(more))


def kept(cache: PrefixCache[str], *prompts: tuple[int, ...]) -> None:
    """Keep what was met twice of these, in order; a place tells the prompt and the block."""
    for at, each in enumerate(prompts):
        cache.keep(cache.blocks_of(each), len(each), lambda number, at=at: f"{at}.{number}")


def places(cache: PrefixCache[str], asked: tuple[int, ...]) -> list[str]:
    return [each.place for each in cache.found(cache.blocks_of(asked))]


def test_a_block_is_kept_when_it_is_met_in_a_second_prompt():
    cache: PrefixCache[str] = PrefixCache(SIZE, 10)
    kept(cache, prompt(1, 2, 3))
    assert places(cache, prompt(1, 2, 3, more=1)) == []
    kept(cache, prompt(1, 2, 4))  # 1 and 2 for the third time, 4 for the first
    assert places(cache, prompt(1, 2, 3, more=1)) == ["0.0", "0.1"]


def test_a_token_of_each_prompt_is_left_to_be_computed():
    cache: PrefixCache[str] = PrefixCache(SIZE, 10)
    kept(cache, prompt(1, 2), prompt(1, 2))
    assert len(cache.kept) == 2
    assert places(cache, prompt(1, 2)) == ["1.0"]
    assert places(cache, prompt(1, 2, more=1)) == ["1.0", "1.1"]
    assert cache.blocks_of(prompt(1, 2, more=3)).num_found_tokens == 2 * SIZE


@pytest.mark.parametrize("other", [prompt(2, 1), prompt(5, 2, 3), (1, 1, 1, 2, *prompt(2))])
def test_equal_tokens_behind_other_ones_are_another_block(other):
    cache: PrefixCache[str] = PrefixCache(SIZE, 10)
    kept(cache, prompt(1, 2, 3), prompt(1, 2, 3))
    assert places(cache, (*other, 1)) == []


def test_the_least_recently_used_block_is_evicted_and_the_end_of_a_prompt_before_its_start():
    let_go: list[str] = []
    cache: PrefixCache[str] = PrefixCache(SIZE, 4, let_go.append)
    kept(cache, prompt(1, 2), prompt(1, 2), prompt(3, 4), prompt(3, 4))
    cache.use(cache.blocks_of(prompt(1, 2, more=1)))
    kept(cache, prompt(5), prompt(5))
    assert let_go == ["3.1"]
    assert places(cache, prompt(3, 4, more=1)) == ["3.0"]
    cache.make_room(2)
    assert let_go == ["3.1", "3.0", "1.1"]
    assert places(cache, prompt(1, more=1)) == ["1.0"]
    cache.check({})


def test_a_block_in_use_is_not_evicted_and_without_room_nothing_is_cached():
    cache: PrefixCache[str] = PrefixCache(SIZE, 2)
    kept(cache, prompt(1, 2), prompt(1, 2))
    for each in cache.kept.values():
        each.num_users = 1
    kept(cache, prompt(3), prompt(3))
    assert places(cache, prompt(1, 2, more=1)) == ["1.0", "1.1"]
    assert places(cache, prompt(3, more=1)) == []
    with pytest.raises(InvariantBroken, match="0 blocks of prompts are read by 0 sequences, and 2"):
        cache.check({})


def test_a_prompt_longer_than_the_room_is_kept_as_far_as_it_goes():
    cache: PrefixCache[str] = PrefixCache(SIZE, 3)
    kept(cache, prompt(1, 2, 3, 4, 5), prompt(1, 2, 3, 4, 5))
    assert places(cache, prompt(1, 2, 3, 4, 5)) == ["1.0", "1.1", "1.2"]


def test_sightings_are_forgotten_in_the_order_in_which_they_were_met(monkeypatch):
    monkeypatch.setattr(prefix_cache, "MAX_SIGHTINGS", 3)
    cache: PrefixCache[str] = PrefixCache(SIZE, 10)
    for each in (1, 2, 3, 1, 4):
        cache.blocks_of(prompt(each))
    assert len(cache.sightings) == 3
    kept(cache, prompt(2), prompt(1))
    assert places(cache, prompt(2, more=1)) == []
    assert places(cache, prompt(1, more=1)) == ["1.0"]


# In the memory of sequences

FLOATS = KVShape(2, 1, 3, torch.float32, torch.device("cpu"))
MAX_ROWS, MAX_TOKENS = 6, 900


WINDOW = 20  # of the first of two layers, where the way has windows


def caches(way: str, max_prefix_tokens: int):
    kind, *windows = way.split(" with ")
    block_tokens = PAGE_TOKENS if kind == "paged" else BLOCK_TOKENS
    if kind == "paged":
        kv_cache = PagedKVCache(FLOATS, MAX_ROWS, MAX_TOKENS, True, max_prefix_tokens)
    else:
        by_ancestors = kind == "ancestors"
        kv_cache = ContiguousKVCache(FLOATS, by_ancestors, True, MAX_TOKENS, max_prefix_tokens)
    kv_cache.set_windows((WINDOW, None) if windows else ())
    return kv_cache, block_tokens


def write(kv_cache, cache, tokens: tuple[int, ...]) -> None:
    """Write tokens of a prompt, each as a number that says which it is and where."""
    numbers = torch.tensor(tokens) * 1000.0 + torch.arange(cache.length, cache.length + len(tokens))
    numbers = numbers[None, :, None].expand(1, -1, FLOATS.head_size)
    if isinstance(kv_cache, PagedKVCache):
        slots = cache.reserve_prompt(cache.length + len(tokens))[:, cache.length :]
        for group, at in kv_cache.places.values():
            kv_cache.kv[at, slots[group]] = numbers[0, :, None, None].expand(-1, 2, 1, -1)
    else:
        cache.reserve(len(tokens) + 1)
        for layer in range(FLOATS.num_layers):
            cache.write_prompt(layer, numbers, numbers)
    cache.commit_prompt(cache.length + len(tokens))


def read(kv_cache, cache, layer: int) -> torch.Tensor:
    """(rows, 2, tokens): one of the numbers of each head, for they are all the same; of the tokens
    that the layer sees."""
    first = max(cache.length - WINDOW, 0) if layer == 0 and kv_cache.windows else 0
    if isinstance(kv_cache, PagedKVCache):
        group, at = kv_cache.places[layer]
        slots = kv_cache.slot_table.slots[group, cache.rows, first : cache.length]
        return kv_cache.kv[at, slots, :, 0, 0].transpose(1, 2)
    rows = cache.of_layer(layer, first, cache.length)[:, :, 0, :, 0].transpose(0, 1)
    is_shared = cache.num_prompt_rows < cache.num_rows
    return rows[:1].expand(cache.num_rows, -1, -1) if is_shared else rows


def check_read(kv_cache, cache, tokens: tuple[int, ...]) -> None:
    """The sequence reads what was written of its prompt."""
    expected = torch.tensor(tokens) * 1000.0 + torch.arange(len(tokens))
    for layer in range(FLOATS.num_layers):
        found = read(kv_cache, cache, layer)
        assert torch.equal(found, expected[-found.shape[2] :].expand_as(found))


WAYS = ["paged", "ancestors", "rows"]


@pytest.mark.parametrize("way", [*WAYS, *(f"{each} with windows" for each in WAYS)])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_sequence_begins_with_what_was_written_for_another(way, data):
    """However they come, go, share and are cut, and whatever has to make room for them."""
    kv_cache, _ = caches(way, data.draw(st.sampled_from([64, 256, 600])))
    prefixes = kv_cache.prefixes
    assert prefixes is not None
    draw = random.Random(data.draw(st.integers(0, 999)))
    beginnings = [tuple(draw.randrange(50) for _ in range(220)) for _ in range(3)]
    running: dict[int, tuple[object, tuple[int, ...]]] = {}
    with torch.inference_mode():
        for number in range(14):
            used = sum(c.num_rows * (len(p) + 1) for c, p in running.values())
            length = draw.choice([20, 64, 65, 130, 200])
            tokens = (*draw.choice(beginnings)[:length], 60 + number)
            num_rows = draw.randint(1, 2)
            rows = sum(c.num_rows for c, _ in running.values())
            fits = used + num_rows * (len(tokens) + 1) <= MAX_TOKENS
            if draw.random() < 0.6 and rows + num_rows <= MAX_ROWS and fits:
                blocks = prefixes.blocks_of(tokens)
                cache = kv_cache.new_sequence(num_rows, len(tokens) + 1)
                found = blocks.num_found_tokens
                cache.take_prefix(blocks)
                assert cache.length == found
                while cache.length < len(tokens):
                    end = min(len(tokens), cache.length + draw.choice([7, 64, 300]))
                    write(kv_cache, cache, tokens[cache.length : end])
                    cache.keep_prefix(blocks)
                running[number] = (cache, tokens)
            elif running:
                cache, _ = running.pop(draw.choice(list(running)))
                cache.clear()
            kv_cache.check(cache for cache, _ in running.values())
            for cache, tokens in running.values():
                check_read(kv_cache, cache, tokens)
        for cache, _ in running.values():
            cache.clear()
        kv_cache.check([])
    assert len(prefixes.kept) <= prefixes.max_blocks


@pytest.mark.parametrize("way", ["paged", "rows"])
def test_prefixes_make_room_for_sequences(way):
    kv_cache, block_tokens = caches(way, MAX_TOKENS // 2)
    tokens = tuple(range(256))
    with torch.inference_mode():
        for _ in range(2):
            cache = kv_cache.new_sequence(1, len(tokens) + 1)
            blocks = kv_cache.prefixes.blocks_of(tokens)
            cache.take_prefix(blocks)
            write(kv_cache, cache, tokens[cache.length :])
            cache.keep_prefix(blocks)
            cache.clear()
        assert len(kv_cache.prefixes.kept) == 256 // block_tokens
        num_tokens = (MAX_TOKENS - 100) // MAX_ROWS
        large = [kv_cache.new_sequence(1, num_tokens) for _ in range(MAX_ROWS)]
        for each in large:
            write(kv_cache, each, tuple(range(1000, 1000 + num_tokens)))
        kv_cache.check(large)
    if way == "rows":  # a page is only taken when it is needed
        assert len(kv_cache.prefixes.kept) <= 128 // block_tokens


def test_sequences_that_begin_alike_have_pages_in_common_which_last_as_long_as_one_of_them():
    kv_cache, _ = caches("paged", MAX_TOKENS // 2)
    tokens = tuple(range(200))
    running = []
    with torch.inference_mode():
        free = len(kv_cache.free_pages)
        for _ in range(4):
            blocks = kv_cache.prefixes.blocks_of(tokens)
            cache = kv_cache.new_sequence(1, 201)
            cache.take_prefix(blocks)
            write(kv_cache, cache, tokens[cache.length :])
            cache.keep_prefix(blocks)
            running.append(cache)
        # The first was met for the first time: its pages are its own. The others share three.
        assert free - len(kv_cache.free_pages) == 4 + 3 + 3
        assert [each.num_users for each in kv_cache.prefixes.kept.values()] == [3, 3, 3]
        running[1].clear()
        kv_cache.prefixes.make_room(0)
        kv_cache.check([running[0], *running[2:]])
        check_read(kv_cache, running[2], tokens)
        for each in running:
            each.clear()
        kv_cache.prefixes.make_room(0)
        assert len(kv_cache.free_pages) == free
    stray = kv_cache.new_sequence(1)
    stray.shared.append(prefix_cache.KeptBlock(3))
    with pytest.raises(InvariantBroken, match="1 blocks of prompts are read"):
        kv_cache.check([stray])


def test_pages_that_windows_have_left_are_freed_before_their_prefix_when_they_are_needed():
    kv_cache, _ = caches("paged with windows", MAX_TOKENS // 2)
    prefixes, tokens = kv_cache.prefixes, tuple(range(400))
    num_blocks = len(tokens) // PAGE_TOKENS
    with torch.inference_mode():
        for _ in range(2):  # it is met twice, and then kept
            blocks = prefixes.blocks_of(tokens)
            cache = kv_cache.new_sequence(1, 401)
            for end in range(50, 401, 50):
                write(kv_cache, cache, tokens[cache.length : end])
                cache.keep_prefix(blocks)
            if not prefixes.kept:
                cache.clear()
        assert prefixes.blocks_of(tokens).num_found_tokens == num_blocks * PAGE_TOKENS
        kv_cache.check([cache])
        # Nothing goes while there are pages; then only what the window has left.
        num_free = len(kv_cache.free_pages)
        taken = kv_cache.take_pages(num_free * PAGE_TOKENS)
        assert prefixes.blocks_of(tokens).num_found_tokens == num_blocks * PAGE_TOKENS
        more = kv_cache.take_pages((num_blocks - 1) * PAGE_TOKENS)
        assert prefixes.blocks_of(tokens).num_found_tokens == 0
        check_read(kv_cache, cache, tokens)
        with pytest.raises(InvariantBroken, match="pages are wanted"):
            kv_cache.take_pages(2 * PAGE_TOKENS)
        kv_cache.give_back_pages([*taken, *more])
        kv_cache.check([cache])
        cache.clear()
        kv_cache.check([])
