"""Placeholders and markup: spans that a translation must keep unchanged.

A value (`{name}`, `%s`, a URL, an address, code) is a word of its sentence. Markup (a tag, the
marks around bold words, a link's target) is not. A translation must contain each exactly as often
as the source.
"""

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass

# What is found earlier is blanked with NUL for those that look later. Every pattern is bounded
# or begins only where its kind can, so that no text takes quadratic time.
CODE = re.compile(
    r"<(?P<tag>code|pre|kbd|samp|var|script|style)\b[^<>\n]{0,100}>[^\n]{0,500}?</(?P=tag)\s*>"
    r"|(?<!`)(?P<ticks>`{1,3})(?!`)[^\n]{1,500}?(?<!`)(?P=ticks)(?!`)",
    re.IGNORECASE,
)
# A target in angle brackets, or one whose brackets are in pairs; and a title.
LINK_TARGET = (
    r"\]\((?:<[^<>\n\x00]{0,2000}+>|(?:[^()<\s\x00]|\([^()\s\x00]{0,200}+\)){0,2000}+)"
    r"(?:[ \t]+(?:\"[^\"\n\x00]{0,200}\"|'[^'\n\x00]{0,200}'|\([^()\n\x00]{0,200}\)))?[ \t]{0,9}\)"
    r"|\]\[[^\[\]\n\x00]{1,100}\]"
)
# A value in quotes may hold `>`.
ATTRIBUTES = r"(?:[^<>\"'\n\x00]|\"[^\"\n\x00]{0,1000}+\"|'[^'\n\x00]{0,1000}+'){0,1000}+"
MARKUP = re.compile(
    r"<!--[^\n\x00]{0,300}?-->|<![A-Za-z][^<>\n\x00]{0,300}>|<\?[^<>\n\x00]{0,300}\?>"
    rf"|</?[A-Za-z][\w.:-]{{0,60}}(?:\s{ATTRIBUTES})?/?>"
    r"|</?[A-Za-z][\w.:-]{0,60}(?:\s[^<>\n\x00]{0,1000})?/?>"
    r"|</?\d[\d:.]{0,20}>"  # WebVTT's times within a cue, numbered tags of messages
    r"|&(?:[A-Za-z]{2,31}|\#\d{1,7}|\#x[0-9A-Fa-f]{1,6});"
    r"|\{\\[^{}\n\x00]{1,100}\}"  # `{\an8}` in subtitles
    rf"|{LINK_TARGET}"
    rf"|!?\[(?=[^\[\]\n]{{0,300}}(?:{LINK_TARGET}))"
)
# What stands for something that the model is not to see; `worker/masking` makes them.
MASKED = re.compile(r"⟦[A-Z][A-Z0-9]{0,30}_[0-9]{1,9}⟧")
# Braces in braces, as `{{ count | default('{x}') }}` and `{n, plural, other {# items}}`.
NESTED = r"\{[^{}\n\x00]*+\}"
for _ in range(3):
    NESTED = rf"\{{(?:[^{{}}\n\x00]|{NESTED})*+\}}"
NESTED = rf"(?=\{{(?:\{{|[^{{}}\s\x00][^{{}}\n\x00]{{0,200}}\{{)){NESTED}"
VALUE = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:https?|ftp|file)://|mailto:|www\.(?=\w))"
    # The alphabets whose words stand apart: Chinese may follow without a space.
    r"(?:[\w\-.~:/?#\[\]@!$&'()*+,;=%](?<![\u0e00-\U0010ffff])){1,2000}"
    r"(?<![.,;:!?'\")\]*_])"
    r"|(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"
    rf"|{MASKED.pattern}"
    r"|\[\^[^\[\]\s\x00]{1,50}\]|!?\[[^\[\]\n\x00]{1,100}\]\[\]"  # footnote; `[name][]`
    rf"|[$#%]?{NESTED}"
    r"|\$?\{\{[^{}\n\x00]{1,200}\}\}|\{%[^{}\n\x00]{1,200}%\}|[$#%]\{[^{}\n\x00]{1,200}\}"
    r"|<%[^%\n\x00]{1,200}%>"
    r"|\{[^{}\s\x00][^{}\n\x00]{0,100}\}|\{\}"
    r"|%\(\w{1,64}\)[#0 +-]{0,4}\d{0,4}(?:\.\d{1,4})?[a-zA-Z]"
    # Without a space for a flag, or `50% discount` would hold one.
    r"|(?<![\w%])%(?:\d{1,2}\$)?[#0+-]{0,4}\d{0,4}(?:\.\d{1,4})?(?:ll?|hh?|z)?[sdiufFeEgGxXoc@](?!\w)"
)
# A text without any of these holds nothing of the kind.
ANY = re.compile(r"[`<&{\]%@*~_⟦]|://|mailto:|www\.")
# `[name]` alone is a link where the document says elsewhere what `[name]:` is.
SHORTCUT = re.compile(r"!?\[([^\[\]\n\x00]{1,100})\](?![\[(:])")
EMPHASIS = re.compile(
    r"(?<![\w*~])(\*{1,3}|~~)(?=[^\s*~])[^*~\n]{1,200}?(?<=\S)(\1)(?![*~])"
    r"|(?<![\w_])(_{1,3})(?=[^\s_])[^_\n]{1,200}?(?<=\S)(\3)(?![\w_])"
)


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A range of a text that a translation must keep unchanged."""

    start: int
    end: int
    is_markup: bool = False

    def of(self, text: str) -> str:
        return text[self.start : self.end]


def find_spans(text: str, labels: Container[str] = ()) -> list[Span]:
    """The placeholders and markup of a text, in order; they never overlap.

    labels: `layout.link_labels` of the document
    """
    if ANY.search(text) is None:
        return []
    spans: list[Span] = []
    _add(spans, text, CODE, is_markup=False)
    _add(spans, text, MARKUP, is_markup=True)
    _add(spans, text, VALUE, is_markup=False)
    if labels:
        free = blanked(text, spans)
        spans += [
            Span(*match.span())
            for match in SHORTCUT.finditer(free)
            if match[1].casefold() in labels
        ]
        spans.sort()
    free = blanked(text, spans)
    emphasis = [
        Span(*match.span(group), is_markup=True)
        for match in EMPHASIS.finditer(free)
        for group in (1, 2, 3, 4)
        if match.group(group)
    ]
    return sorted([*spans, *emphasis])


def _add(spans: list[Span], text: str, pattern: re.Pattern[str], *, is_markup: bool) -> None:
    free = blanked(text, spans)
    spans += [Span(*match.span(), is_markup) for match in pattern.finditer(free)]
    spans.sort()


def blanked(text: str, spans: Iterable[Span]) -> str:
    """The text with NUL in place of the spans."""
    return "".join(_replaced(text, spans, lambda span: "\x00" * (span.end - span.start)))


def hidden(text: str, spans: Iterable[Span]) -> str:
    """The text for a splitter, of equal length: values become words, markup becomes spaces."""

    def word(span: Span) -> str:
        length = span.end - span.start
        return " " * length if span.is_markup else ("X" + "x" * length)[:length]

    return "".join(_replaced(text, spans, word))


def _replaced(text: str, spans: Iterable[Span], by: Callable[[Span], str]) -> Iterator[str]:
    at = 0
    for span in spans:
        yield text[at : span.start]
        yield by(span)
        at = span.end
    yield text[at:]


def between(spans: Iterable[Span], length: int) -> Iterator[tuple[int, int]]:
    """The ranges outside of all spans."""
    at = 0
    for span in spans:
        if span.start > at:
            yield at, span.start
        at = span.end
    if length > at:
        yield at, length


def missed(source: str, spans: Iterable[Span], translation: str) -> Counter[str]:
    """How many occurrences of each span a translation lacks; negative if it has too many."""
    names = {span.of(source) for span in spans}
    made_up = {span.of(translation) for span in find_spans(translation)} - names
    differences = {
        each: source.count(each) - translation.count(each) for each in sorted(names | made_up)
    }
    return Counter({each: num for each, num in differences.items() if num})
