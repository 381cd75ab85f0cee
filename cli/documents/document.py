"""Document: the text of a file, and its parts without text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cli.errors import CommandError
from cli.output.terminal import plural

MAX_PAGES_NAMED = 30

UnreadableCode = Literal[
    "unreadable_row",
    "file_too_large",
    "not_text",
    "no_text",
    "encrypted",
    "broken_file",
    "extra_missing",
]


@dataclass(frozen=True, slots=True)
class Document:
    """The text of a file. `without_text` names its parts without any: `pages 3, 7 of 10`."""

    text: str
    without_text: str | None = None


class UnreadableDocument(CommandError):
    """A file without readable text, with a code and a sentence; other files can still be read."""

    def __init__(self, code: UnreadableCode, fault: str) -> None:
        super().__init__(fault)
        self.code = code
        self.fault = fault


def pages_in_words(numbers: Sequence[int], num_pages: int) -> str:
    """`page 3 of 10`, `pages 2-4, 7 of 10`. numbers: ascending, from 1"""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    if len(shown) > MAX_PAGES_NAMED:
        return f"{plural(len(numbers), 'page')} of {num_pages:,}"
    return f"page{'s' if len(numbers) > 1 else ''} {', '.join(shown)} of {num_pages:,}"
