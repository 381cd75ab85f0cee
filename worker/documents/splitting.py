"""Splitting: cuts a text into pieces at its natural boundaries. Joined they are the text again.

`semantic-text-splitter` knows paragraphs, sentences and words in every script, Thai and Chinese
included. If it misbehaves, a document loses its good boundaries and never its job: its pieces are
checked, and else replaced by our own.
"""

import logging
import re
from collections.abc import Iterator
from enum import IntEnum
from functools import lru_cache
from typing import Any

from worker.documents.graphemes import is_between_graphemes, safe_cut

log = logging.getLogger(__name__)

# The window that is split at once, in a few milliseconds. The library's time grows with the square
# of a run without spaces, which this bounds.
WINDOW_CHARACTERS = 16_384
NEAR = 80  # characters around a place that decide what ends there
HEADING = re.compile(r"^(?=#{1,6}\s)", re.MULTILINE)
SURROGATES = {code: "\ufffd" for code in range(0xD800, 0xE000)}
SENTENCE_END = re.compile(
    r"(?:[.!?…][\"'”’»)\]]*(?=\s)|[。！？｡।॥។።؟۔][”’」』）]*)\s*"  # of scripts with spaces, without
)
CUTS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), SENTENCE_END, re.compile(r"\s+"))


class Boundary(IntEnum):
    """The largest unit that ends at a place in a text, the strongest last."""

    NONE = 0
    SENTENCE = 1
    LINE = 2
    PARAGRAPH = 3
    HEADING = 4  # one begins


def boundary_at(text: str, at: int) -> Boundary:
    """The largest unit that ends at a place."""
    if HEADING.match(text, at) and (at == 0 or text[at - 1] in "\n\r"):
        return Boundary.HEADING
    before, after = text[max(at - NEAR, 0) : at], text[at : at + NEAR]
    text_before = before.rstrip()
    # A splitter may leave the space behind a paragraph to the piece that follows.
    space = before[len(text_before) :] + after[: len(after) - len(after.lstrip())]
    num_lines = space.replace("\r\n", "\n").replace("\r", "\n").count("\n")
    if num_lines:
        return Boundary.PARAGRAPH if num_lines > 1 else Boundary.LINE
    ends = bool(SENTENCE_END.search(text_before[-3:] + space))
    return Boundary.SENTENCE if ends else Boundary.NONE


def piece_ends(text: str, max_characters: int) -> Iterator[int]:
    """The ends of a text's pieces, in order; the last is the text's length.

    The text is cut window by window, so that a document of millions of characters delays no other.
    """
    start = 0
    size = max(WINDOW_CHARACTERS, 4 * max_characters)
    while start < len(text):
        window = text[start : start + size]
        parts = pieces(window, max_characters)
        if start + len(window) < len(text) and len(parts) > 1:
            parts.pop()  # it ends at the window's end; the next window finds a better end
        for piece in parts:
            start += len(piece)
            yield start


def pieces(text: str, max_characters: int) -> list[str]:
    """Split a text into pieces of at most `max_characters`. Always: joined they are the text."""
    sections = [each for each in HEADING.split(text) if each]
    return [piece for section in sections for piece in _pieces(section, max_characters)]


def _pieces(text: str, max_characters: int) -> list[str]:
    if len(text) <= max_characters:
        return [text]
    parts = _semantic_pieces(text, max_characters)
    return plain_pieces(text, max_characters) if parts is None else parts


def _semantic_pieces(text: str, max_characters: int) -> list[str] | None:
    """The pieces that the library finds; None if they are unusable."""
    try:
        # The library takes no lone surrogates. The shadow has equal length, so its cuts fit the
        # text.
        lengths = [
            len(each) for each in _splitter(max_characters).chunks(text.translate(SURROGATES))
        ]
    except ImportError:  # a wheel that this platform may not have
        return None
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        # Only the type: a library's message can quote the text.
        log.warning("splitter failed", extra={"error": type(error).__name__})
        return None
    if sum(lengths) != len(text) or max(lengths) > max_characters or not all(lengths):
        log.warning("splitter lost its place", extra={"num_characters": len(text)})
        return None
    parts, start = [], 0
    for length in lengths:
        parts.append(text[start : start + length])
        start += length
    return parts


@lru_cache(maxsize=8)
def _splitter(max_characters: int) -> Any:
    from semantic_text_splitter import TextSplitter

    return TextSplitter(max_characters, trim=False)


def plain_pieces(text: str, max_characters: int) -> list[str]:
    """Split by our own rules: paragraph, line, sentence, word, character."""
    parts, start = [], 0
    while start < len(text):
        end = _plain_end(text, start, max_characters)
        parts.append(text[start:end])
        start = end
    return parts


def _plain_end(text: str, start: int, max_characters: int) -> int:
    end = start + max_characters
    if end >= len(text):
        return len(text)
    for cut in CUTS:
        # In the second half only, since a piece of three words is useless.
        ends = [
            each.end()
            for each in cut.finditer(text, start + max_characters // 2, end)
            if is_between_graphemes(text, each.end())
        ]
        if ends:
            return ends[-1]
    return safe_cut(text, start, end)
