"""Placeholders and markup are found, and a translation is held to them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.documents.translation.placeholders import between, find_spans, hidden, missed
from worker.documents.translation.translatable import fragments


def found(text: str) -> list[str]:
    return [span.of(text) for span in find_spans(text)]


@pytest.mark.parametrize(
    "text",
    [
        "{name}",
        "{0}",
        "{}",
        "{user.name!r:>10}",
        "{{ y }}",
        "{{name}}",
        "{% if x %}",
        "${x}",
        "#{x}",
        "%s",
        "%d",
        "%1$s",
        "%(name)s",
        "%.2f",
        "%@",
        "%ld",
        "https://example.com/a?b=c#d",
        "http://localhost:8000/",
        "www.example.org",
        "mailto:a@b.org",
        "bob.smith+x@mail.example.org",
        "`foo. Bar()`",
        "``a ` b``",
        "<code>x = {y}</code>",
        "<br/>",
        "<img alt=\"A. B\" src='x'>",
        "<v Roger>",
        "<c.yellow>",
        "<00:01.500>",
        "&nbsp;",
        "&#8217;",
        "{\\an8}",
        "<!-- a. B -->",
        "<!DOCTYPE html>",
        "<?php echo 'a. B' ?>",
        "<%= user.name > 'a. B' %>",
        "{{ count | default('{x}') }}",
        "${price:{currency}}",
        "{n, plural, one {# item} other {# items}}",
        "{a, select, x {{n, plural, other {#}}} other {-}}",
        '<a title="3 > 2" href="x">',
        "<a title='it\"s > that'>",
        "%{name}",
        "</0>",
        "[^1]",
        "[the guide][]",
    ],
)
def test_each_kind_is_one_span(text: str) -> None:
    assert found(f"See {text} now.") == [text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Go to https://x.org/a. Then (see https://y.org/b).",
            ["https://x.org/a", "https://y.org/b"],
        ),
        ("访问https://example.com查看。", ["https://example.com"]),
        ("<https://x.org>", ["https://x.org"]),
        (
            'A [link](http://x.y/z) and ![img](a.png "t")',
            ["[", "](http://x.y/z)", "![", '](a.png "t")'],
        ),
        (
            "[a](x_(y).html 'The y') and [b](<a file.md> (Title)) and [c](d)",
            ["[", "](x_(y).html 'The y')", "[", "](<a file.md> (Title))", "[", "](d)"],
        ),
        ("**strong** *em* _it_ ~~no~~", ["**", "**", "*", "*", "_", "_", "~~", "~~"]),
        ('<a href="https://x.org">It</a>', ['<a href="https://x.org">', "</a>"]),
    ],
)
def test_spans_are_found_among_words(text: str, expected: list[str]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "50% discount, 100% sure",
        "2 * 3 * 4",
        "snake_case_name",
        "a < b and c > d",
        "{ not this }",
        "R&D and AT&T",
        "[sic]",
        "5%",
        "a @ b",
        "C:\\x",
        "{ a set } and { another {",
        "a note [sic] of it",
    ],
)
def test_ordinary_words_are_no_spans(text: str) -> None:
    assert found(text) == []


def test_a_name_alone_is_a_link_where_the_document_says_so() -> None:
    text = "See [the Guide] and [sic], [a](b) and [the guide]: this."
    spans = find_spans(text, {"the guide"})
    assert [span.of(text) for span in spans] == ["[the Guide]", "[", "](b)"]


@given(st.text() | st.lists(st.sampled_from("{}`<>*_[]()%$&@: a./\\\n~-1s")).map("".join))
def test_spans_are_in_order_and_apart_and_fragments_lose_nothing(text: str) -> None:
    spans = find_spans(text)
    ends = [0, *(place for span in spans for place in (span.start, span.end)), len(text)]
    assert ends == sorted(ends)
    assert all(span.start < span.end for span in spans)
    assert len(hidden(text, spans)) == len(text)
    assert "".join(part for part, _ in fragments(text, spans)) == text
    tiles = [*between(spans, len(text)), *((span.start, span.end) for span in spans)]
    assert "".join(text[start:end] for start, end in sorted(tiles)) == text


@pytest.mark.parametrize(
    ("translation", "expected"),
    [
        ("Vous avez {{ n }} de {name}.", {}),
        ("Vous avez de {name}.", {"{{ n }}": 1}),
        ("Vous avez {{n}} de {nom}.", {"{{ n }}": 1, "{name}": 1, "{{n}}": -1, "{nom}": -1}),
        ("{name}, {name}: {{ n }}.", {"{name}": -1}),
    ],
)
def test_a_translation_must_keep_placeholders_exactly(
    translation: str, expected: dict[str, int]
) -> None:
    source = "{name}: you have {{ n }}."
    assert missed(source, find_spans(source), translation) == expected


@pytest.mark.parametrize(
    "piece",
    [
        "` a",
        "`",
        "<a ",
        "*a ",
        "**a",
        "[a",
        "{a",
        "a@b.",
        "_a ",
        "http://",
        "&a",
        "%0",
        "<code>",
        "${",
        "<!--",
        "[a](b ",
        "a-",
        "www.",
        "{a{",
        "{a{}",
        "{a{{b}",
        '<a "',
        '<a b="c>',
        "[a](b(",
        "[^",
        "<?",
        "<!a",
    ],
)
def test_no_text_takes_the_square_of_its_length(piece: str) -> None:
    # Quadratic time would be hours, and the test's time limit minutes.
    find_spans(piece * (300_000 // len(piece)))
