"""Context: the headings or last sentences that are given to a model before a part of a document.

Pure. The context does not belong to the part: a result's coverage is computed from the parts alone.
"""

from bisect import bisect_left
from collections.abc import Iterator

from worker.documents.headings import headings_of
from worker.documents.sentences import plain_ends

SENTENCE_CHARACTERS = 1_000  # the longest sentence that may be context
NUM_LEVELS = 6  # of headings
MAX_SPACE = 100  # characters before a heading, at a part's beginning
JOINT = "\n\n"


class Context:
    """The context before each place of one text, as far as the job asks for it."""

    def __init__(self, text: str, *, heading_path: bool, overlap_sentences: int) -> None:
        self._text = text
        self._headings = list(headings_of(text)) if heading_path else []
        self._starts = [each.start for each in self._headings]
        self._num_sentences = overlap_sentences
        # For a place after each heading: the headings above it, one of each level.
        self._above: list[int | None] = []
        stack: list[int] = []
        for index, heading in enumerate(self._headings):
            while stack and self._headings[stack[-1]].level >= heading.level:
                stack.pop()
            self._above.append(stack[-1] if stack else None)
            stack.append(index)

    @property
    def max_characters(self) -> int:
        """An upper bound of the length of any context."""
        longest = max((len(each.line) for each in self._headings), default=0)
        path = NUM_LEVELS * (longest + len(JOINT)) if longest else 0
        return path + self._num_sentences * SENTENCE_CHARACTERS

    def before(self, start: int, max_characters: int) -> str:
        """The context of a part that starts there, outermost heading first; "" for none.

        If it is too long, the farthest pieces are left out.
        """
        kept: list[str] = []
        for each in self._nearest_first(start):
            max_characters -= len(each) + len(JOINT)
            if max_characters < 0:
                break
            kept.append(each)
        return "".join(each + JOINT for each in reversed(kept))

    def _nearest_first(self, start: int) -> Iterator[str]:
        yield from reversed(self._sentences(start))
        # A heading at the beginning of the part belongs to the part; those above it do not.
        ahead = self._text[start : start + MAX_SPACE]
        own = start + len(ahead) - len(ahead.lstrip())
        behind = bisect_left(self._starts, own)
        index: int | None = behind - 1 if behind else None
        if behind < len(self._starts) and self._starts[behind] == own:
            index = self._above[behind]
        while index is not None:
            yield self._headings[index].line
            index = self._above[index]

    def _sentences(self, start: int) -> list[str]:
        if not self._num_sentences or not start:
            return []
        first = max(start - self._num_sentences * SENTENCE_CHARACTERS, 0)
        before = self._text[first:start]
        ends = plain_ends(before)
        sentences = [before[one:other] for one, other in zip([0, *ends], ends, strict=False)]
        whole = sentences if first == 0 else sentences[1:]  # the first may be the end of a sentence
        stripped = (each.strip() for each in whole[-self._num_sentences :])
        return [each for each in stripped if each]
