"""Texts of users and models on a screen: no text controls the terminal, in any encoding."""

import io
import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.output import terminal
from cli.output.escaping import FALLBACK, json_text, visible
from cli.output.terminal import Screen, inert, one_line, print_table, table

UNSAFE = [
    *map(chr, [*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)]),
    *map(chr, [*range(0x2028, 0x202F), *range(0x2066, 0x2070), 0xD800, 0xDCFF, 0xDFFF]),
]
ENCODINGS = ["ascii", "latin-1", "cp437", "cp1252", "koi8-r", "utf-8"]
HOSTILE = (
    "\x1b[2J\x1b]0;title\x07\x9b31m[red]x[/red] [link=http://x]y[/link] \u202egnp.exe\u2066 :boom:"
)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.BytesIO]:
    """Standard output in ASCII and 20 columns wide; gives the written bytes."""
    written = io.BytesIO()
    to = io.TextIOWrapper(written, encoding="ascii", errors=FALLBACK, write_through=True)
    screen = Screen(width=20)
    screen.file = to
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(terminal, "out", screen)
    yield written
    to.detach()


@pytest.mark.parametrize("character", UNSAFE, ids=lambda each: f"{ord(each):04x}")
def test_control_characters_are_shown_as_escapes(character: str) -> None:
    shown = visible(f"a{character}b")

    assert shown == f"a{character.encode('unicode_escape').decode()}b"
    assert shown.isascii()
    assert shown.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "Die Mühle\n\tmahlt.",
        "« le\u00a0moulin »",  # French uses a no-break space
        "می\u200cخواهم",  # Persian uses a zero-width character
        "👩\u200d🌾",
        "שלום\u200f!",
        "\u3000全角",
        "e\u0301",
        "C:\\new",
    ],
)
def test_ordinary_text_is_not_escaped(text: str) -> None:
    assert visible(text) == text
    assert inert(text).plain == text


def test_line_ends_of_windows_are_line_ends_and_a_lone_return_is_none() -> None:
    assert visible("a\r\nb\rc") == "a\nb\\rc"
    assert visible("a\r\nb\tc", one_line=True) == "a\\nb\\tc"


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(text=st.text(st.characters(exclude_categories=[])))
def test_every_text_is_shown_in_every_encoding(encoding: str, text: str) -> None:
    shown = visible(text, encoding)

    shown.encode(encoding)
    assert not set(shown) & set(UNSAFE)
    assert visible(shown, encoding) == shown


def test_an_encoding_keeps_what_it_has_and_shows_the_rest_as_escapes() -> None:
    assert visible("é ☃ …", "latin-1") == "é \\u2603 ..."
    assert visible("é ☃ …", "cp437") == "é \\u2603 ..."
    assert visible("é ☃ …", "ascii") == "\\xe9 \\u2603 ..."


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(text=st.text(st.characters(exclude_categories=[])))
def test_json_loses_nothing_and_obeys_nothing(encoding: str, text: str) -> None:
    written = json_text({"text": text}, encoding)

    assert json.loads(written.encode(encoding)) == {"text": text}
    assert json.loads(written.encode("ascii" if encoding != "utf-8" else "utf-8"))["text"] == text
    assert not set(written) & set(UNSAFE)


def test_a_table_holds_hostile_texts_in_cells_headers_and_titles(screen: io.BytesIO) -> None:
    terminal.out.width = 300
    made = table("id", HOSTILE, title=HOSTILE)
    made.add_row("1", HOSTILE)
    made.add_row("2\nid 3", one_line(HOSTILE, 200))

    print_table(made)

    written = screen.getvalue().decode("ascii")
    assert not set(written) & set(UNSAFE)
    assert written.count("[red]x[/red] [link=http://x]y[/link]") == 4
    assert written.count(":boom:") == 4
    assert len(written.rstrip().splitlines()) == 4, "a cell is a line"


def test_a_sentence_is_escaped_whoever_is_quoted_in_it(screen: io.BytesIO) -> None:
    terminal.say(f"the batch {HOSTILE}\nand é")

    written = screen.getvalue().decode("ascii")
    assert not set(written) & set(UNSAFE)
    assert "[red]x[/red]" in written
    assert written.endswith("\nand \\xe9\n")


def test_in_20_columns_a_row_is_a_paragraph_and_nothing_of_it_is_lost(screen: io.BytesIO) -> None:
    job_id = "01a20a9c-8646-70ad-ab14-32e4e2328b4c"
    made = table("id", "state", "output")
    made.add_row(job_id, "succeeded", one_line("the keeper of Gull Rock lit the lamp…", 90))

    print_table(made, dispensable=["state"])

    written = screen.getvalue().decode("ascii")
    assert max(map(len, written.splitlines())) <= 20
    assert job_id in written.replace("\n", "")
    assert "the keeper of Gull Rock lit the lamp..." in " ".join(written.split())


def test_a_table_that_nearly_fits_does_without_a_column(screen: io.BytesIO) -> None:
    terminal.out.width = 24
    made = table("a", "state", "output")
    made.add_row("1", "succeeded", one_line("the keeper of Gull Rock", 90))

    print_table(made, dispensable=["state"])

    head, row = screen.getvalue().decode("ascii").splitlines()
    assert head.split() == ["a", "output"]
    assert row.rstrip() == "1  the keeper of Gu..."


def test_the_spinner_fits_the_terminals_encoding(screen: io.BytesIO) -> None:
    assert terminal.out.spinner == "line"


def test_a_name_that_is_cut_says_so() -> None:
    assert one_line("a\n  b\tc", 10).plain == "a b c"
    assert one_line("x" * 50, 10).plain == "x" * 9 + "…"
    assert one_line("\x1b" * 50, 10).plain == "\\x1b\\x1b\\…"
