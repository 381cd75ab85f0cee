"""What a command says: answers on standard output, everything about them on standard error."""

import json
import os
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 240

out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False)


def say(sentence: str) -> None:
    """An answer for a person to read."""
    out.print(sentence, soft_wrap=True)


def note(sentence: str) -> None:
    """Something beside the answer, where a pipe does not carry it off."""
    err.print(sentence, soft_wrap=True, style="dim")


def warn(sentence: str) -> None:
    err.print(f"tidemill: {sentence}", soft_wrap=True)


def write_json(value: Any) -> None:
    """One JSON document on standard output, for a program to read."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def table(*columns: str, title: str | None = None) -> Table:
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        # An id or a date in two pieces cannot be copied.
        made.add_column(column, overflow="fold", no_wrap=column in ("id", "enqueued"))
    return made


def print_table(made: Table) -> None:
    """A table as wide as the terminal; in a pipe or file, as wide as it likes to be."""
    to = out if out.is_terminal or "COLUMNS" in os.environ else Console(width=PIPE_WIDTH)
    to.print(made)


def inert(text: str) -> Text:
    """A user's text for the terminal: escape sequences in it stay letters."""
    return Text("".join(c if c.isprintable() or c == "\n" else "�" for c in text))


def one_line(text: str, max_characters: int) -> Text:
    """The beginning of a user's text, on one line."""
    joined = " ".join(text.split())
    if len(joined) > max_characters:
        joined = joined[: max_characters - 1] + "…"
    return inert(joined)


def plural(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`, `3 batches`."""
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"
