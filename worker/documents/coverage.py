"""Coverage: which parts of a document a result was made from, computed from offsets."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TextRange:
    """The characters of the source from `start` to before `end`."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """The part of a source that a result covers.

    Always: read and left-out spans tile the source.
    """

    strategy: str  # as it was done: single, map_reduce, refine or truncate
    parts: int  # of the source
    rounds: int  # in which requests depend on each other: 1 is a single request
    source_characters: int
    source_tokens: int  # of the prompts that read the source
    left_out: tuple[TextRange, ...] = ()
    parts_cut: int = 0  # whose summary ended at its limit of length
    context_characters: int = 0  # that were read again, before parts: headings, sentences

    @property
    def left_out_characters(self) -> int:
        return sum(each.end - each.start for each in self.left_out)

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["left_out"] = [[each.start, each.end] for each in self.left_out]
        if not self.context_characters:
            del data["context_characters"]
        data["left_out_characters"] = self.left_out_characters
        return data


def spans(ends: Iterable[int]) -> list[TextRange]:
    """The spans between consecutive offsets, from the first character on."""
    unread, start = [], 0
    for end in ends:
        unread.append(TextRange(start, end))
        start = end
    return unread


def left_out(read: Sequence[TextRange], num_characters: int) -> tuple[TextRange, ...]:
    """The ranges of a source outside of all spans.

    Raises ValueError if spans overlap or exceed it.
    """
    missing, at = [], 0
    for span in sorted(read, key=lambda each: each.start):
        if not at <= span.start < span.end <= num_characters:
            raise ValueError(f"the span {span.start}-{span.end} after {at} of {num_characters}")
        if span.start > at:
            missing.append(TextRange(at, span.start))
        at = span.end
    if at < num_characters:
        missing.append(TextRange(at, num_characters))
    return tuple(missing)
