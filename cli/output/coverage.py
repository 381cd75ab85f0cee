"""Draws which parts of a source a result covers."""

from collections.abc import Mapping
from typing import Any

READ, LEFT_OUT = "#", "."


def coverage_lines(coverage: Mapping[str, Any], width: int) -> list[str]:
    """A sentence, and a bar if the source has several parts or was not read whole."""
    num_characters, left_out = coverage["source_characters"], coverage["left_out_characters"]
    parts = "1 part" if coverage["parts"] == 1 else f"{coverage['parts']:,} parts"
    rounds = "1 round" if coverage["rounds"] == 1 else f"{coverage['rounds']:,} rounds"
    line = (
        f"{num_characters - left_out:,} of {num_characters:,} characters, "
        f"{coverage['source_tokens']:,} tokens, in {parts} and {rounds} ({coverage['strategy']})"
    )
    if coverage["parts_cut"]:
        line += f"; {coverage['parts_cut']:,} summaries of parts ended at their limit of length"
    if again := coverage.get("context_characters"):
        line += f"; {again:,} characters of headings and sentences before parts read again"
    if coverage["parts"] == 1 and not left_out:
        return [line]
    return [line, bar(coverage["left_out"], num_characters, width)]


def bar(left_out: list[list[int]], num_characters: int, width: int) -> str:
    """A bar with one mark for each stretch of the source; a stretch with a gap is marked."""
    marks = [READ] * width
    for start, end in left_out:
        for place in range(start * width // num_characters, width):
            if place * num_characters >= end * width:
                break
            marks[place] = LEFT_OUT
    return "".join(marks)
