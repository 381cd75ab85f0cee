"""PrefixBound with arithmetic tokenizers: how much of a text is counted."""

from __future__ import annotations

import pytest

from engine.text.token_lengths import SLICE_CHARACTERS, PrefixBound


class Counter:
    """Counts a token for each `characters_per_token`, and records the slices."""

    def __init__(self, characters_per_token: int) -> None:
        self.characters_per_token = characters_per_token
        self.slices: list[str] = []

    def __call__(self, text: str) -> int:
        self.slices.append(text)
        return len(text) // self.characters_per_token


def test_a_short_text_is_not_counted():
    count = Counter(4)
    assert PrefixBound(255).least_tokens("a" * 16_000, count) == 0
    assert count.slices == []


@pytest.mark.parametrize("max_tokens", [1, 255, 8192, 60_000])
def test_counting_ends_with_the_slice_that_exceeds_the_limit(max_tokens):
    count, pauses = Counter(4), []
    text = "the mill " * 430_000
    bound = PrefixBound(max_tokens)
    least = bound.least_tokens(text, count, lambda: pauses.append(len(count.slices)))
    assert max_tokens < least <= len(text) // 4
    num_read = sum(map(len, count.slices))
    assert "".join(count.slices) == text[:num_read]
    assert num_read < 5 * max_tokens + 2 * SLICE_CHARACTERS
    assert max(map(len, count.slices)) <= SLICE_CHARACTERS
    assert pauses == list(range(1, len(count.slices) + 1))


def test_token_counting_reads_at_most_max_characters():
    count = Counter(10**9)
    bound = PrefixBound(255)
    assert bound.least_tokens(" " * 3_900_000, count) == 0
    num_read = sum(map(len, count.slices))
    assert bound.max_characters <= num_read < bound.max_characters + SLICE_CHARACTERS


def test_slices_end_behind_a_word_where_one_ends_near():
    count = Counter(4)
    PrefixBound(60_000).least_tokens("mill " * 100_000, count)
    assert all(each.startswith(" mill") for each in count.slices[1:])


def test_an_error_of_the_pause_ends_the_count():
    count = Counter(4)
    with pytest.raises(ZeroDivisionError):
        PrefixBound(60_000).least_tokens("a" * 3_900_000, count, lambda: 1 / 0)
    assert len(count.slices) == 1
