"""Parts of a document, cut at its boundaries and counted by the engine.

Pieces are counted and packed into parts; then each part is counted as its whole prompt, since token
counts of pieces add up only approximately. So no part exceeds the limit.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from engine.protocol.output import Measurement, Output
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from worker.documents.context import Context
from worker.documents.coverage import TextRange, spans
from worker.documents.headings import section_starts
from worker.documents.packing import Piece, pack
from worker.documents.splitting import boundary_at, piece_ends
from worker.documents.words import count_words
from worker.errors import PartsTooSmall
from worker.recipes.recipe import Asking, Work

MEASURED_CHARACTERS = 16_384  # of one request: others are served in between
SAMPLE_CHARACTERS = 4_096
PIECES_PER_PART = 8
MIN_ROOM_TOKENS = 8
CONTEXT_SHARE = 0.25  # of the room, at most, for what stands before a part
FILLED = 0.8  # of the limit, when a part that came out too long is cut again


@dataclass(frozen=True, slots=True)
class TextPart:
    span: TextRange
    num_tokens: int  # of its prompt; 0: there is nothing in it to read
    context: str = ""  # what is read before it

    def text(self, source: str) -> str:
        """The part's text without surrounding whitespace."""
        return self.context + source[self.span.start : self.span.end].strip()


@dataclass(frozen=True, slots=True)
class Ruler:
    """The longest prompt that fits, and an estimate of tokens per character."""

    params: SamplingParams
    max_tokens: int  # of a prompt
    max_new_tokens: int
    overhead: int  # tokens of a prompt beside its text
    characters_per_token: float
    tokens_per_word: float

    @property
    def room(self) -> int:
        """The number of tokens left for the text."""
        return self.max_tokens - self.overhead


def ruler(work: Work, params: SamplingParams, text: str) -> Asking[Ruler]:
    """Ask the engine for the limits of prompts with these params. Raises PartsTooSmall."""
    sample = text.strip()[:SAMPLE_CHARACTERS]
    (output,) = yield (_measuring(work, params, ("a", sample)),)
    measured = _measurement(output)
    overhead = max(measured.num_tokens[0] - 1, 0)
    num_tokens = max(measured.num_tokens[1] - overhead, 1)
    new_ruler = Ruler(
        params=params,
        max_tokens=measured.max_prompt_tokens,
        max_new_tokens=measured.max_new_tokens,
        overhead=overhead,
        characters_per_token=len(sample) / num_tokens,
        tokens_per_word=num_tokens / max(count_words(sample), 1),
    )
    if new_ruler.room < MIN_ROOM_TOKENS:
        raise PartsTooSmall(new_ruler.room)
    return new_ruler


def cut(
    work: Work,
    measure: Ruler,
    text: str,
    context: Context | None = None,
    *,
    by_section: bool = False,
) -> Asking[list[TextPart]]:
    """The parts of a text, in order. Always: their spans tile it and none exceeds the limit.

    context:    the context before each part; a part without room for it gets none
    by_section: whether a part may not extend over several sections
    """
    starts = section_starts(text) if by_section else frozenset()
    if not starts and len(text) <= MEASURED_CHARACTERS:
        (num_tokens,) = yield from _counted(work, measure.params, [text.strip()])
        if num_tokens <= measure.max_tokens:
            return [TextPart(TextRange(0, len(text)), num_tokens)]
    reserve = 0
    if context is not None:
        longest = int(context.max_characters / measure.characters_per_token) + 1
        reserve = min(longest, int(measure.room * CONTEXT_SHARE))
    max_characters = int(reserve * measure.characters_per_token)
    pieces = yield from _pieces(work, measure, text)
    ends = [
        end
        for section in _sections(pieces, starts)
        for end in pack(section, measure.room - reserve)
    ]
    unchecked = [(span, True) for span in spans(ends)]
    parts: list[TextPart] = []
    while unchecked:
        candidates = [
            _candidate(text, span, context if has_context else None, max_characters)
            for span, has_context in unchecked
        ]
        texts = (each.text(text) for each in candidates)
        counted = yield from _counted(work, measure.params, texts)
        unchecked = []
        for part, num_tokens in zip(candidates, counted, strict=True):
            if num_tokens <= measure.max_tokens:
                parts.append(replace(part, num_tokens=num_tokens))
            elif part.context:
                unchecked.append((part.span, False))
            else:
                smaller = _smaller(text, part.span, num_tokens, measure)
                unchecked += [(span, True) for span in smaller]
    return sorted(parts, key=lambda part: part.span.start)


def _sections(pieces: list[Piece], starts: frozenset[int]) -> Iterator[list[Piece]]:
    section: list[Piece] = []
    for piece in pieces:
        section.append(piece)
        if piece.end in starts:
            yield section
            section = []
    if section:
        yield section


def _candidate(
    text: str, span: TextRange, context: Context | None, max_characters: int
) -> TextPart:
    """A part that is not yet counted."""
    if context is None or text[span.start : span.end].isspace():
        return TextPart(span, 0)
    return TextPart(span, 0, context.before(span.start, max_characters))


def first_part(work: Work, measure: Ruler, text: str) -> Asking[TextPart]:
    """The beginning of a text, as much as fits, for strategies that read no more."""
    num_characters = int(2 * measure.room * measure.characters_per_token) + 1
    while True:
        pieces = yield from _pieces(work, measure, text[:num_characters])
        if num_characters >= len(text) or sum(each.num_tokens for each in pieces) > measure.room:
            break
        num_characters *= 4
    end = num_tokens = 0
    for piece in pieces:
        num_tokens += piece.num_tokens
        if end and num_tokens > measure.room:
            break
        end = piece.end
    parts = yield from cut(work, measure, text[:end])
    # Repeated cuts start from the longest text that was found to fit.
    return next(part for part in parts if part.num_tokens > 0 or part is parts[-1])


def _pieces(work: Work, measure: Ruler, text: str) -> Asking[list[Piece]]:
    """The counted pieces of a text, which are cut while the engine counts earlier ones."""
    most = int(measure.room * measure.characters_per_token / PIECES_PER_PART)
    ends: list[int] = []

    def texts() -> Iterator[str]:
        start = 0
        for end in piece_ends(text, max(most, 1)):
            ends.append(end)
            yield text[start:end]
            start = end

    counted = yield from _counted(work, measure.params, texts())
    return [
        Piece(end, max(num_tokens - measure.overhead, 0), boundary_at(text, end))
        for end, num_tokens in zip(ends, counted, strict=True)
    ]


def _smaller(text: str, span: TextRange, num_tokens: int, measure: Ruler) -> list[TextRange]:
    """Split a part that is too long."""
    length = span.end - span.start
    if length == 1:
        raise PartsTooSmall(measure.room)
    num_parts = max(-(-num_tokens // max(int(measure.max_tokens * FILLED), 1)), 2)
    ends = piece_ends(text[span.start : span.end], -(-length // num_parts))
    return [TextRange(each.start + span.start, each.end + span.start) for each in spans(ends)]


def _counted(work: Work, params: SamplingParams, texts: Iterable[str]) -> Asking[list[int]]:
    """The number of tokens of each text's prompt."""
    outputs = yield (_measuring(work, params, each) for each in _batches(texts))
    return [num for output in outputs for num in _measurement(output).num_tokens]


def _batches(texts: Iterable[str]) -> Iterator[tuple[str, ...]]:
    batch: list[str] = []
    num_characters = 0
    for text in texts:
        batch.append(text)
        num_characters += len(text)
        if num_characters >= MEASURED_CHARACTERS:
            yield tuple(batch)
            batch, num_characters = [], 0
    if batch:
        yield tuple(batch)


def _measuring(work: Work, params: SamplingParams, texts: tuple[str, ...]) -> Request:
    return work.request(task=work.task, measured_texts=texts, params=params)


def _measurement(output: Output) -> Measurement:
    assert output.measurement is not None
    return output.measurement
