"""Pieces are packed into parts of like size that end where something does."""

from hypothesis import given
from hypothesis import strategies as st

from worker.documents.packing import Piece, pack
from worker.documents.splitting import Boundary

SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=200)


def pieces_of(sizes: list[int], boundaries: dict[int, Boundary] | None = None) -> list[Piece]:
    return [
        Piece(number, size, (boundaries or {}).get(number, Boundary.SENTENCE))
        for number, size in enumerate(sizes, start=1)
    ]


def part_sizes(sizes: list[int], ends: list[int]) -> list[int]:
    return [sum(sizes[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


@given(sizes=SIZES, max_tokens=st.integers(12, 100), data=st.data())
def test_no_part_is_over_the_limit_and_all_pieces_are_in_one(
    sizes: list[int], max_tokens: int, data: st.DataObject
) -> None:
    boundaries = data.draw(
        st.dictionaries(st.integers(1, len(sizes)), st.sampled_from(list(Boundary)))
    )
    ends = pack(pieces_of(sizes, boundaries), max_tokens)
    assert ends == sorted(set(ends))
    assert ends[-1] == len(sizes)
    assert all(size <= max_tokens for size in part_sizes(sizes, ends))


@given(sizes=SIZES, max_tokens=st.integers(100, 300))
def test_the_last_part_is_not_a_crumb(sizes: list[int], max_tokens: int) -> None:
    parts = part_sizes(sizes, pack(pieces_of(sizes), max_tokens))
    if len(parts) > 1:
        assert parts[-1] >= 0.3 * max(parts)


def test_a_part_rather_ends_where_a_paragraph_does() -> None:
    sizes = [10] * 20
    ends = pack(pieces_of(sizes, {9: Boundary.PARAGRAPH, 10: Boundary.SENTENCE}), 150)
    assert ends == [9, 20]


def test_parts_begin_at_evenly_spaced_headings() -> None:
    sizes = [5, 20, 20, 15] * 6
    headings = {number: Boundary.HEADING for number in range(4, 25, 4)}
    assert pack(pieces_of(sizes, headings), 70) == [4, 8, 12, 16, 20, 24]


def test_a_piece_over_the_limit_is_a_part_of_its_own() -> None:
    assert pack(pieces_of([3, 50, 3]), 10)[:2] == [1, 2]
