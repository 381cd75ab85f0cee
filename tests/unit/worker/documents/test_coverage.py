"""What a result covers is computed from offsets that tile the source."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.documents.coverage import Coverage, TextRange, left_out, spans


@given(ends=st.sets(st.integers(1, 500), min_size=1), data=st.data())
def test_read_and_left_out_ranges_tile_the_source(ends: set[int], data: st.DataObject) -> None:
    tiles = spans(sorted(ends))
    read = data.draw(st.lists(st.sampled_from(tiles), unique=True))
    missing = left_out(read, max(ends))
    held = sorted(at for span in (*read, *missing) for at in range(span.start, span.end))
    assert held == list(range(max(ends)))


def test_spans_that_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="span 5-9"):
        left_out([TextRange(0, 6), TextRange(5, 9)], 9)
    with pytest.raises(ValueError, match="span 0-10"):
        left_out([TextRange(0, 10)], 9)


def test_coverage_as_json_says_how_much_is_left_out() -> None:
    coverage = Coverage(
        strategy="truncate",
        parts=1,
        rounds=1,
        source_characters=100,
        source_tokens=20,
        left_out=left_out([TextRange(0, 60)], 100),
    )
    assert coverage.to_json() == {
        "strategy": "truncate",
        "parts": 1,
        "rounds": 1,
        "source_characters": 100,
        "source_tokens": 20,
        "left_out": [[60, 100]],
        "left_out_characters": 40,
        "parts_cut": 0,
    }
