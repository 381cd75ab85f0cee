"""A document is its sentences and its form; put together again, nothing is lost."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.documents.graphemes import is_between_graphemes
from worker.documents.translation.translatable import Translatable, broken, cut

LETTER = """# The mill

  The tide is low. The ferry waits.

- one key
- a longer item of which the end
  stands on a second line
1. Counted
   2) and deeper

> A quotation that somebody wrapped
> onto two lines. It ends.

```python
print("The tide. Is low.")
```

| Day | Tide |
|-----|------|
| Monday | It is low. |

<p>Hello.</p><p>World <b>wide</b>.</p>
apples
pears
"""
PIECES = st.lists(
    st.sampled_from(
        [
            "The tide is low. ",
            "\n",
            "\r\n",
            "\r",
            "- ",
            "> ",
            "  ",
            "\t",
            "1. ",
            "```\n",
            "~~~\n",
            "| a | b |",
            "<p>",
            "</p>",
            "{x}",
            "`c. D`",
            "**",
            "https://x.org ",
            "你好。",
            "#",
            "\u2028",
            "\u00a0",
            "A",
            ".",
            "word " * 9,
            "1\n00:00:01,000 --> 00:00:02,000\n",
            "WEBVTT\n",
            "é\u0301",
            "👩‍👩‍👧",
            "שלום. ",
            "\ufeff",
            "<pre>",
            "</pre>",
            "<!-- ",
            "-->",
            "a | b\n--- | ---\n",
            "[a]: b\n",
            "{a {b}}",
            "---\n",
            "key: word\n",
        ]
    ),
    max_size=30,
).map("".join)


def texts(document: Translatable) -> list[str]:
    return [each.text for each in document.sentences]


def of(text: str) -> Translatable:
    return Translatable.of(text, "en")


@given(st.text(st.characters()) | PIECES)
@example(LETTER)
@example(LETTER.replace("\n", "\r\n"))
def test_join_of_split_is_the_text(text: str) -> None:
    document = of(text)
    source = [text[each.start : each.end] for each in document.sentences]
    tiles = list(document.tiles())
    assert "".join(text[start:end] for start, end, _ in tiles) == text
    assert all(start < end for start, end, _ in tiles)
    whole = [
        each.text if each.breaks else written
        for each, written in zip(document.sentences, source, strict=True)
    ]
    assert document.join(whole) == text
    coverage = document.coverage()
    assert coverage["translated_characters"] + coverage["kept_characters"] == len(text)
    assert coverage["num_sentences"] == len(document.sentences)


def test_the_form_of_a_letter_stays() -> None:
    document = of(LETTER)
    assert texts(document) == [
        "The mill",
        "The tide is low.",
        "The ferry waits.",
        "one key",
        "a longer item of which the end stands on a second line",
        "Counted",
        "and deeper",
        "A quotation that somebody wrapped onto two lines.",
        "It ends.",
        "Day",
        "Tide",
        "Monday",
        "It is low.",
        "Hello.",
        "World <b>wide</b>.",
        "apples",
        "pears",
    ]
    loud = document.join([each.text.upper() for each in document.sentences], "fr")
    assert loud.lower() == LETTER.lower()
    assert 'print("The tide. Is low.")' in loud
    assert "> A QUOTATION THAT SOMEBODY WRAPPED\n> ONTO TWO LINES. IT ENDS.\n" in loud


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028", "\x0b"])
def test_line_ends_come_back_as_they_were(end: str) -> None:
    text = f"{end}  One here.{end}{end}{end}\tTwo there. {end}"
    assert texts(of(text)) == ["One here.", "Two there."]
    assert of(text).join(["Un.", "Deux."], "fr") == f"{end}  Un.{end}{end}{end}\tDeux. {end}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n\n ",
        "12345",
        "https://x.org/a",
        "a@b.org",
        "`code`",
        "```\nThe code. Is here.\n```",
        "---",
        "| --- |",
        "{name} %s",
        "<br/>",
        "🙂 …",
    ],
)
def test_a_fragment_without_words_is_not_translated(text: str) -> None:
    assert of(text).sentences == ()
    assert of(text).join([]) == text


def test_a_cell_stays_one_whatever_stands_in_it() -> None:
    document = of("Day | Tide\n--- | ---\nOne | Low \\| high\n")
    assert texts(document) == ["Day", "Tide", "One", "Low \\| high"]
    assert document.join(["a | b", "c", "d|", "e \\| f | g"]) == (
        "a \\| b | c\n--- | ---\nd\\| | e \\| f \\| g\n"
    )


def test_a_fence_that_nothing_closes_hides_nothing() -> None:
    assert texts(of("Before.\n```\nThe rest. Of it.")) == ["Before.", "The rest.", "Of it."]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\ntitle: The mill\ntags:\n  - tide\n---\nIt is low.\n", ["It is low."]),
        ("---\n\nIt is low.\n\n---\n", ["It is low."]),
        (
            '+++\r\ntitle = "The mill"\ntags = [\n  "tide",\n]\n# Why\n[menu]\nx.y = 1\n+++\r\n'
            "It is low.",
            ["It is low."],
        ),
        ("+++\nIt is low.\n+++\n", ["It is low."]),
        ("<script>\nvar x = 'Some words. More.';\n</script>\nIt is low.", ["It is low."]),
        ("<div><style>\np { color: red }\n</style>It is low.</div>", ["It is low."]),
        ("<pre>\nSome code. Here.\n\nMore of it.\n</pre>\nIt is low.", ["It is low."]),
        ("<!-- Not this.\n\nNor that. -->\nIt is low.", ["It is low."]),
        ("It is <!-- not --> low.", ["It is <!-- not --> low."]),
        ("<pre>\nIt is low.", ["It is low."]),
        (
            "Write `<pre>` here. And\n`</pre>` there.",
            ["Write `<pre>` here.", "And", "`</pre>` there."],
        ),
        ("```\n<!--\n```\nIt is low.\n-->", ["It is low.", "-->"]),
        ('See [this].\n\n[this]: https://x.org/a "A title"\n', ["See [this]."]),
        ("See [this].\n\n[this]: <a b> 'T'\n[It]: c (T)\n", ["See [this]."]),
        ("Low[^1].\n\n[^1]: As it was.\n", ["Low[^1].", "As it was."]),
        ("[Note]: it is low today.", ["[Note]: it is low today."]),
        (
            "Day | Tide\n--- | :-:\nOne | Low. High.\n\nA | b.",
            ["Day", "Tide", "One", "Low.", "High.", "A | b."],
        ),
        ("> Day | Tide\n> --- | ---\n> One | Low\n", ["Day", "Tide", "One", "Low"]),
        ("Either | or\nneither", ["Either | or", "neither"]),
        ("It is\\\nlow.", ["It is", "low."]),
    ],
)
def test_running_text_and_form_are_told_apart(text: str, expected: list[str]) -> None:
    document = of(text)
    assert [each for each in texts(document) if each != "-->"] == [
        each for each in expected if each != "-->"
    ]
    assert document.join(texts(document)) == text


@pytest.mark.parametrize(
    "piece",
    [
        "<pre>\n",
        "<!--\n",
        "-->\n",
        "<script></pre>\n",
        "[a]: ",
        "[a]: b\n",
        "a | b\n",
        "-|-\n",
        "---\n",
        "`<p>` ",
        "```\na\n```\nb\n",
    ],
)
def test_no_form_takes_the_square_of_a_texts_length(piece: str) -> None:
    of(piece * (200_000 // len(piece)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "See `a. B` and https://x.org/a?b. C then.",
            ["See `a. B` and https://x.org/a?b.", "C then."],
        ),
        ('<img alt="One. Two"> Three. Four.', ["Three.", "Four."]),
        ("**Bold words.** Plain words.", ["Bold words.", "Plain words."]),
        ("**One here. Two there.** Three.", ["One here.", "Two there.", "Three."]),
        ("See {x}. **The tide** is `low`.", ["See {x}.", "**The tide** is `low`."]),
        ("Go {x}.<b>The {y}</b> is.", ["Go {x}.", "<b>The {y}</b> is."]),
        ("{name} is here. {other} is not.", ["{name} is here.", "{other} is not."]),
    ],
)
def test_no_sentence_ends_within_a_placeholder(text: str, expected: list[str]) -> None:
    assert texts(of(text)) == expected


@pytest.mark.parametrize(
    ("source", "text", "target", "translations", "expected"),
    [
        ("zh", "你好。再见。", "en", ["Hello.", "Bye."], "Hello. Bye."),
        ("en", "Hello. Bye.", "zh", ["你好。", "再见。"], "你好。再见。"),
        ("zh", "你好。再见。", "ja", ["一。", "二。"], "一。二。"),
        ("en", "Hello.  Bye.", "fr", ["Bonjour.", "Adieu."], "Bonjour.  Adieu."),
        ("en", "Hello.\n\nBye.", "zh", ["你好。", "再见。"], "你好。\n\n再见。"),
    ],
)
def test_sentences_are_spaced_as_their_language_is(
    source: str, text: str, target: str, translations: list[str], expected: str
) -> None:
    assert Translatable.of(text, source).join(translations, target) == expected


@given(st.text(max_size=200), st.lists(st.floats(0.01, 0.99), max_size=4).map(sorted))
def test_broken_lines_hold_the_same_words(text: str, shares: list[float]) -> None:
    lines = broken(text, [(share, "\n") for share in shares])
    assert lines.replace("\n", " ") == text.replace("\n", " ")


@given(st.text(max_size=300), st.integers(2, 40))
def test_parts_of_a_cut_sentence_are_the_sentence(text: str, max_characters: int) -> None:
    parts = cut(text, max_characters)
    assert "".join(part for part, _ in parts) == text
    assert all(len(part) <= max_characters for part, _ in parts)


FRAMES = """1
00:00:07,882 --> 00:00:10,510
Check it out, folks!
A photo of us from my wedding.

2
00:00:10,593 --> 00:00:12,804
Is that Nicky Caccimelio?

3
00:00:12,887 --> 00:00:15,265
The missing mobster was at your wedding?
The whole town is looking for him.

4
00:00:15,348 --> 00:00:16,599
And he's talking
with Lester.
"""
WEBVTT = """WEBVTT - A title

STYLE
::cue { color: red }

NOTE This is no cue.
Nor is this.

intro
00:07.000 --> 00:09.500 line:0
<v Roger>Hello there. You too.

00:10.000 --> 00:12.000
- One.
- Two.
"""


def test_every_sentence_of_every_cue_is_translated_and_nothing_else() -> None:
    document = of(FRAMES)
    assert document.format == "subtitles"
    assert texts(document) == [
        "Check it out, folks!",
        "A photo of us from my wedding.",
        "Is that Nicky Caccimelio?",
        "The missing mobster was at your wedding?",
        "The whole town is looking for him.",
        "And he's talking with Lester.",
    ]
    loud = document.join([text.upper() for text in texts(document)], "de")
    assert loud.lower() == FRAMES.lower()
    assert loud.count("-->") == 4


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_webvtt_keeps_its_notes_and_styles(end: str) -> None:
    document = of(("\ufeff" + WEBVTT).replace("\n", end))
    assert document.format == "subtitles"
    assert texts(document) == ["Hello there.", "You too.", "One.", "Two."]
    assert document.join(["a", "b", "c", "d"]).replace(end, "\n") == "\ufeff" + (
        WEBVTT.replace("Hello there.", "a")
        .replace("You too.", "b")
        .replace("One.", "c")
        .replace("Two.", "d")
    )


def test_a_blank_line_within_a_cue_loses_no_words() -> None:
    assert texts(of(FRAMES.replace("folks!\n", "folks!\n\n"))) == texts(of(FRAMES))


def test_the_format_can_be_named() -> None:
    assert Translatable.of(FRAMES, "en", "text").format == "text"


def test_a_span_is_where_it_is_when_lines_are_joined() -> None:
    text = "A line that is long enough to be wrapped {one} and\n    then goes on with {two} here."
    (sentence,) = of(text).sentences
    assert [span.of(sentence.text) for span in sentence.spans] == ["{one}", "{two}"]


def test_signs_around_several_sentences_are_held_to_in_each() -> None:
    document = of("Say **one here. Two there** now. Three.")
    assert [[span.of(each.text) for span in each.spans] for each in document.sentences] == [
        ["**"],
        ["**"],
        [],
    ]


@pytest.mark.timeout(60)
def test_a_text_of_many_lines_is_split_in_a_time_that_grows_with_its_length() -> None:
    """A time that grows with the square would be minutes here."""
    text = "The miller opens the gate. Anna sells two boats at the quay.\n" * 20_000
    document = Translatable.of(text, "en")
    assert len(document.sentences) == 40_000
    assert document.join([each.text for each in document.sentences], "en") == text


FAMILY = "👨‍👩‍👧‍👦"


@pytest.mark.parametrize(
    "text",
    ["e\u0301" * 300, FAMILY * 100, "🇫🇷" * 200, "각" * 300, "👍🏽" * 200, "नमस्ते" * 100,
     "a,\u0301" * 200, "שלום" * 100, "مرحبا، " * 100],
)  # fmt: skip
def test_a_cut_takes_no_character_apart(text: str) -> None:
    ends, at = [], 0
    for part, _ in cut(text, 50):
        at += len(part)
        ends.append(at)
    assert at == len(text)
    assert len(ends) > 1
    assert all(is_between_graphemes(text, end) for end in ends)


def test_a_long_sentence_without_spaces_is_cut_at_its_words() -> None:
    thai = "ประเทศไทยมีท่าเรือที่สวยงามและมีเรือข้ามฟากรออยู่ทุกเช้า" * 5
    parts = [part for part, _ in cut(thai, 60)]
    assert "".join(parts) == thai
    assert len(parts) > 4
    # No part begins with what only follows within a word.
    assert not any(unicodedata.category(part[0]).startswith("M") for part in parts)
    chinese = "今天港口很好，渡船在等，" * 20
    assert all(part.endswith("，") for part, _ in cut(chinese, 50))


@pytest.mark.parametrize(
    "text",
    [
        "x" * 1_000_000,
        "The tide is low. " * 60_000,
        "今天天气很好。" * 150_000,
        "word " * 200_000,
        "{x} " * 250_000,
        "e\u0301" * 500_000,
    ],
)
def test_a_line_of_a_million_characters_is_split_in_bounded_time(text: str) -> None:
    document = Translatable.of(text, "en")
    assert document.join([text[each.start : each.end] for each in document.sentences]) == text


@pytest.mark.parametrize(
    ("text", "language", "sentences"),
    [
        ("שלום עולם. מה שלומך?", "he", ["שלום עולם.", "מה שלומך?"]),
        ("مرحبا بالعالم. كيف حالك؟", "ar", ["مرحبا بالعالم.", "كيف حالك؟"]),
        ("\u202bשלום.\u202c The tide.", "he", None),
        ("| اليوم | Tide |\n|---|---|\n| مرحبا | It is low. |", "ar",
         ["اليوم", "Tide", "مرحبا", "It is low."]),
        ("Low tide 🌊. Ferry 👨‍👩‍👧‍👦 waits! 🇫🇷", "en", None),
    ],
)  # fmt: skip
def test_right_to_left_text_emoji_and_tables_keep_their_layout(
    text: str, language: str, sentences: list[str] | None
) -> None:
    document = Translatable.of(text, language)
    if sentences is not None:
        assert [each.text for each in document.sentences] == sentences
    assert document.join([text[each.start : each.end] for each in document.sentences]) == text
