"""Coverage is drawn as it is: what is missing shows, however little it is."""

import pytest

from cli.output.coverage import bar, coverage_lines

WHOLE = {
    "strategy": "map_reduce",
    "parts": 20,
    "rounds": 3,
    "source_characters": 120_000,
    "source_tokens": 31_000,
    "left_out": [],
    "left_out_characters": 0,
    "parts_cut": 0,
}


@pytest.mark.parametrize(
    ("left_out", "drawn"),
    [
        ([], "##########"),
        ([[60, 100]], "######...."),
        ([[99, 100]], "#########."),
        ([[0, 1]], ".#########"),
        ([[15, 25]], "#..#######"),
    ],
)
def test_a_bar_shows_what_was_left_out(left_out: list[list[int]], drawn: str) -> None:
    assert bar(left_out, 100, 10) == drawn


def test_a_source_shorter_than_the_bar_is_drawn() -> None:
    assert bar([[1, 2]], 2, 10) == "#####....."


def test_a_document_is_one_sentence_and_a_bar() -> None:
    sentence, drawn = coverage_lines(WHOLE, 20)
    assert sentence == (
        "120,000 of 120,000 characters, 31,000 tokens, in 20 parts and 3 rounds (map_reduce)"
    )
    assert drawn == "#" * 20


def test_a_text_read_whole_at_once_needs_no_bar() -> None:
    assert len(coverage_lines({**WHOLE, "parts": 1, "rounds": 1}, 20)) == 1


def test_coverage_reports_text_that_was_read_twice() -> None:
    said, _ = coverage_lines({**WHOLE, "context_characters": 4_200}, 20)
    assert said.endswith("; 4,200 characters of headings and sentences before parts read again")
