"""Terminal output: answers on standard output, everything else on standard error."""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.status import Status
from rich.table import Column, Table
from rich.text import Text

from cli.output.escaping import is_unicode, json_text, visible

PIPE_WIDTH = 240
MIN_COLUMN_WIDTH = 16  # a column that is narrower than this is not worth looking at
GAP = 2  # between columns
ON_ONE_LINE = ("input", "output")  # cut at the edge, so that a job is a line


class Screen(Console):
    """A console that never gets a control character, or a character that its encoding lacks."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)
        # By COLUMNS as it is when something is printed, and not as it was at the import.
        self._width = width

    @property
    def is_unicode(self) -> bool:
        return is_unicode(self.encoding)

    @property
    def spinner(self) -> str:
        """The name of a spinner whose characters the encoding has."""
        return "dots" if self.is_unicode else "line"

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text, self.encoding), **options)

    def status(self, status: RenderableType, **options: Any) -> Status:
        return super().status(status, **{"spinner": self.spinner, **options})


out = Screen()
err = Screen(stderr=True)


def say(sentence: str) -> None:
    """Print an answer for a person."""
    out.print(sentence, soft_wrap=True)


def note(sentence: str) -> None:
    """Print a remark on standard error, which a pipe does not carry off."""
    err.print(sentence, soft_wrap=True, style="dim")


def warn(sentence: str) -> None:
    err.print(f"tidemill: {sentence}", soft_wrap=True)


def ask(question: str, *, default: bool = False) -> bool:
    """Ask a yes-or-no question; an interrupt is raised.

    The dialogue is on standard error, since a program may read standard output.
    """
    while True:
        err.print(f"{question} [{'Y/n' if default else 'y/N'}]: ", soft_wrap=True, end="")
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            err.print()  # a terminal goes on behind its ^C
            raise
        if not line:
            raise EOFError("nobody answers")
        answer = line.strip().lower()
        if not answer or answer in ("y", "yes", "n", "no"):
            return answer.startswith("y") if answer else default
        err.print("Please answer y or n.")


def write_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    sys.stdout.write(json_text(value, out.encoding, indent=2) + "\n")


class LinesTable(Table):
    """A table whose cells stay on one line, whatever text they contain."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        super().add_row(
            *(_of_one_line(cell) if isinstance(cell, str) else cell for cell in cells), **options
        )


def table(*columns: str, title: str | None = None) -> Table:
    new_table = LinesTable(
        title=title, title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for column in columns:
        on_one_line = column in ON_ONE_LINE
        new_table.add_column(
            column,
            overflow="ellipsis" if on_one_line else "fold",
            # An id or a date in two pieces cannot be copied.
            no_wrap=on_one_line or column in ("id", "enqueued"),
        )
    return new_table


def print_table(listing: Table, dispensable: Sequence[str] = ()) -> None:
    """Print a table as wide as the terminal; into a pipe or file, at its natural width.

    dispensable: columns that are left out one by one until the table fits. If it never does, every
                 row becomes a paragraph
    """
    to = out if out.is_terminal or "COLUMNS" in os.environ else Screen(width=PIPE_WIDTH)
    to.print(fitted(listing, to.width, dispensable))


def fitted(listing: Table, width: int, dispensable: Sequence[str] = ()) -> RenderableType:
    """The table in a form that fits a width: whole, without some columns, or as paragraphs."""
    for header in dispensable:
        if _min_width(listing) <= width:
            break
        listing.columns = [column for column in listing.columns if column.header != header]
    if _min_width(listing) > width:
        return Group(*_paragraphs(listing))
    _cut_long_columns(listing, width)
    return listing


def _min_width(listing: Table) -> int:
    """The width of the table with every long column as narrow as is useful."""
    widths = [
        _width(column) if _is_fixed(column) else min(_width(column), MIN_COLUMN_WIDTH)
        for column in listing.columns
    ]
    return sum(widths) + GAP * (len(widths) - 1)


def _cut_long_columns(listing: Table, width: int) -> None:
    """Divide the remaining width among the long columns; Rich would shrink others first."""
    long = [column for column in listing.columns if column.header in ON_ONE_LINE]
    num_free = width - GAP * len(listing.columns)  # Rich counts one at the edge, too
    num_free -= sum(_width(column) for column in listing.columns if column not in long)
    for column in long:
        column.max_width = max(num_free // len(long), MIN_COLUMN_WIDTH)
        if not out.is_unicode:  # Rich has an ellipsis of one character only
            column._cells = [one_line(str(cell), column.max_width) for cell in column.cells]


def _is_fixed(column: Column) -> bool:
    return column.no_wrap and column.header not in ON_ONE_LINE


def _width(column: Column) -> int:
    """The width of the column's longest cell."""
    return max(_cell(cell).cell_len for cell in (column.header, *column.cells))


def _paragraphs(listing: Table) -> Iterator[Text]:
    if listing.title is not None:
        yield Text(str(listing.title), "bold")
    for row in zip(*(list(column.cells) for column in listing.columns), strict=True):
        for column, cell in zip(listing.columns, row, strict=True):
            if text := _cell(cell):
                yield Text.assemble(f"{column.header}: ", text)
        yield Text("")


def _cell(cell: RenderableType) -> Text:
    return cell if isinstance(cell, Text) else Text(str(cell))


def inert(text: str) -> Text:
    """A user's text for the terminal, in which escape sequences are shown as letters."""
    return Text(visible(text, out.encoding))


def one_line(text: str, max_characters: int) -> Text:
    """The beginning of a user's text, on one line."""
    joined = _of_one_line(text).plain
    if len(joined) > max_characters:
        ellipsis = "…" if out.is_unicode else "..."
        joined = joined[: max(max_characters - len(ellipsis), 0)] + ellipsis
    return Text(joined)


def _of_one_line(text: str) -> Text:
    return inert(" ".join(text.split()))


def plural(number: int, noun: str) -> str:
    """A number with its noun: `1 job`, `2 jobs`, `3 batches`, `4 entries`."""
    if number == 1:
        return f"{number:,} {noun}"
    if noun.endswith("ry"):
        return f"{number:,} {noun[:-1]}ies"
    return f"{number:,} {noun}{'es' if noun.endswith('ch') else 's'}"
