"""HTML becomes Markdown: what has a form keeps it, and what nobody reads is gone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.documents import UnreadableDocument
from cli.documents.markup import markdown_of, page_text, read


@pytest.mark.parametrize(
    ("html", "markdown"),
    [
        ("<h1>Title</h1><p>One\n  two.</p><p>Three.", "# Title\n\nOne two.\n\nThree."),
        ("<h3>A <em>b</em><br>c</h3>", "### A b c"),
        ("<p>One <b>bold</b> <a href='u'>link</a>.</p>", "One bold link."),
        ("<p>First line<br/>second line</p>", "First line\nsecond line"),
        ("<ul><li>a<li>b</ul><p>after", "- a\n- b\n\nafter"),
        ("<ol start=3><li>a</li><li value=7>b</li><li>c</li></ol>", "3. a\n7. b\n8. c"),
        ("<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>", "- a\n  - b\n- c"),
        ("<ol><li><p>a</p><p>b</p></li></ol>", "1. a\n\n   b"),
        ("<blockquote><p>a</p><p>b</p></blockquote>c", "> a\n\n> b\n\nc"),
        (
            "<table><tr><th>Name<th>Sum<tr><td>rye|oats<td>12</table>",
            "| Name | Sum |\n| --- | --- |\n| rye\\|oats | 12 |",
        ),
        ("<table><tr><td>a</td></tr><tr><td>b</td><td>c</td></tr></table>", None),
        (
            "<table><tr><th>Name<th>Sum<tr><td>rye<br>oats<td><p>12<p>or 13</table>",
            "| Name | Sum |\n| --- | --- |\n| rye oats | 12 or 13 |",
        ),
        ("<table><tr><td>rye<br>oats<td>12</table>", "rye\noats\n\n12"),
        ("<p>in&shy;visible</p>", "invisible"),
        (
            "<table><tr><td><h2>Head</h2><p>One.</p><p>Two.</p></td><td>Side</td></tr></table>",
            "## Head\n\nOne.\n\nTwo.\n\nSide",
        ),
        ("<pre>\n  a &lt; b\n    c</pre>", "```\n  a < b\n    c\n```"),
        ("<p>Call <code>f(x)</code>.</p>", "Call `f(x)`."),
        ("a<hr>b", "a\n\n---\n\nb"),
        ("<dl><dt>rye</dt><dd>a grain</dd></dl>", "rye\n\na grain"),
        ("a &amp; b &#8212; c&nbsp;d", "a & b — c\u00a0d"),
        ("<p>5 < 6 and 7 > 2</p>", "5 < 6 and 7 > 2"),
        ("words without any tags", "words without any tags"),
    ],
)
def test_html_structure_becomes_markdown(html: str, markdown: str | None) -> None:
    if markdown is None:
        markdown = "| a |  |\n| --- | --- |\n| b | c |"
    assert markdown_of(html) == markdown


@pytest.mark.parametrize(
    "html",
    [
        "<html><head><title>T</title><style>p {}</style></head><body>Read.</body></html>",
        "<script>var a = '<p>no</p>';</script>Read.<!-- no --><script src=x></script>",
        "<svg><text>no<title>no</title></text></svg>Read.",
        "<template><p>no</p></template><noscript>no</noscript>Read.",
        "<![if !IE]>Read.<![endif]>",
        "<![foo[no]]>Read.",
        "<?php no ?>Read.",
        "</p></div></ul></table></pre></blockquote>Read.",
    ],
)
def test_invisible_html_is_left_out(html: str) -> None:
    assert markdown_of(html).strip("]> ").endswith("Read.")
    assert "no" not in markdown_of(html)


def test_a_page_without_words_says_so() -> None:
    with pytest.raises(UnreadableDocument, match="holds no text") as refused:
        read(b"<html><body><img src=a.png></body></html>")
    assert refused.value.code == "no_text"


@pytest.mark.parametrize(
    "page",
    [
        "<p>Größe</p>".encode(),
        "<p>Größe</p>".encode("utf-8-sig"),
        "<p>Größe</p>".encode("utf-16"),
        '<meta charset="iso-8859-1"><p>Größe</p>'.encode("latin-1"),
        "<?xml version='1.0' encoding='windows-1252'?><p>Größe</p>".encode("cp1252"),
        "<meta http-equiv=Content-Type content='text/html; charset=macintosh'>Größe".encode(
            "mac-roman"
        ),
        "<meta charset=no-such-thing>Größe".encode(),
        "<meta charset=base64>Größe".encode(),
        "<meta charset=utf-16>Größe".encode(),
    ],
)
def test_a_page_is_read_in_the_encoding_that_it_names(page: bytes) -> None:
    assert page_text(page) == "Größe"


@pytest.mark.parametrize("name", [b"utf-8", b"undefined", b"ascii", b"idna", b"punycode"])
def test_bytes_that_are_no_text_are_refused_in_words(name: bytes) -> None:
    with pytest.raises(UnreadableDocument) as refused:
        page_text(b"<meta charset=" + name + b"><p>\xff\x81\x8d</p>")
    assert refused.value.code == "not_text"


TAGS = (
    *("<p>", "</p>", "<li>", "<ul>", "</ul>", "<ol>", "</ol>", "<h1>", "</h1>", "<br>", "<div>"),
    *("<table>", "</table>", "<tr>", "<td>", "</td>", "<pre>", "</pre>", "<code>", "</code>"),
    *("<blockquote>", "</blockquote>", "<hr>"),
)


@given(st.lists(st.sampled_from([*TAGS, "word"])))
def test_no_sequence_of_tags_loses_a_word(pieces: list[str]) -> None:
    assert markdown_of(" ".join(pieces)).count("word") == pieces.count("word")


@given(st.text(st.sampled_from("<>/!-[]?pa&;= \n'\"")))
def test_any_text_can_be_read_as_html(html: str) -> None:
    markdown_of(html)
