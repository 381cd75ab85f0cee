"""Sentences end where a reader ends them, whatever the text is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.documents import sentences
from worker.documents.sentences import WINDOW_CHARACTERS, plain_ends, sentence_ends

ANYTHING = st.text(st.characters())  # surrogates included
PROSE = st.lists(
    st.sampled_from(
        ["A", "b", ".", "!", "。", " ", "\u00a0", "\u2028", "\u3000", "\n", "\r\n", "1"]
    )
).map("".join)
LANGUAGES = st.sampled_from(["en", "fr", "de", "zh", "ja", "th", "ar", "hi", "km", "xx", "", "eng"])


def parts(text: str, language: str = "en") -> list[str]:
    ends = sentence_ends(text, language)
    return [text[start:end].strip() for start, end in zip([0, *ends], ends, strict=False)]


@given(ANYTHING | PROSE, LANGUAGES)
def test_sentences_tile_every_text(text: str, language: str) -> None:
    for ends in (sentence_ends(text, language), plain_ends(text) if text else []):
        assert ends == sorted(set(ends))
        assert (ends[-1] if ends else 0) == len(text)


@pytest.mark.parametrize("space", ["\u2028", "\xa0", "\u3000", "\u2009", "\u202f", "\x85"])
def test_texts_that_panic_the_sentence_library_are_split(space: str) -> None:
    text = f"A{space}."
    assert sentence_ends(text, "en") == [len(text)]


def test_lone_surrogates_are_letters_like_others() -> None:
    assert sentence_ends("Half \ud83d. Whole.", "en") == [8, 14]


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("en", ["Hi George.", "Roy, got to talk to you."]),
        ("en", ["Mr. Smith came at 5 p.m. and left.", "It cost 3.5 million!", "Really?"]),
        ("en", ["See No. 5 on p. 12.", "Then go."]),
        ("en", ['He said "Go." and left.', "Dr. A. B. Smith agreed."]),
        ("en", ["the tide is low.", "the ferry waits."]),
        ("en", ["THE TIDE IS LOW.", "THE FERRY WAITS."]),
        ("de", ["Der 3. Oktober ist frei.", "Am 5. Mai auch."]),
        ("ru", ["Он пришёл.", "Она ушла."]),
        ("hi", ["वह आया।", "वह गई।"]),
        ("ar", ["هل جاء؟", "نعم جاء."]),
    ],
)
def test_sentences_are_split_in_scripts_with_spaces(language: str, expected: list[str]) -> None:
    assert parts(" ".join(expected), language) == expected


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("zh", ["你好。", "今天天气很好！", "你呢？"]),
        ("ja", ["「行く。」と言った。", "次。"]),
        ("km", ["សួស្តីពិភពលោក។", "ថ្ងៃនេះអាកាសធាតុល្អណាស់។"]),
    ],
)
def test_sentences_are_split_in_scripts_without_spaces(language: str, expected: list[str]) -> None:
    assert parts("".join(expected), language) == expected


def test_splitting_a_long_text_takes_linear_time() -> None:
    assert len(sentence_ends("The fox. " * 20_000, "en")) == 20_000
    assert len(sentence_ends("the Fox said no, no. 5 " * 20_000, "en")) == 1
    assert len(sentence_ends("x" * 1_000_000, "en")) == 1


SENTENCES = st.sampled_from(
    [
        "The tide is low.",
        "Did it rise at 5 p.m. today?",
        "Dr. Smith saw No. 5 of the boats, e.g. the old one!",
        "It cost $3.50 and no more...",
        "So J. R. Reed said.",
        "And 12 of them came home, as on p. 12 of the book.",
        "Low\u00a0tide.",
        "Yes.",
        "The end came late (as ever).",
    ]
)


@given(st.lists(SENTENCES, max_size=40), st.sampled_from([" ", "  ", "\n"]), st.integers(60, 400))
def test_window_by_window_sentences_end_where_they_do_in_the_whole_text(
    said: list[str], space: str, width: int
) -> None:
    text = space.join(said)
    whole = sentence_ends(text, "en")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentences, "WINDOW_CHARACTERS", width)
        assert sentence_ends(text, "en") == whole


@pytest.mark.parametrize(
    "piece", ["x", "word ", "The fox. ", "the fox, no. 5 ", "\u201cHi there. ", "今天", "។", "(a. "]
)
def test_the_splitter_reads_each_character_a_bounded_number_of_times(
    monkeypatch: pytest.MonkeyPatch, piece: str
) -> None:
    import sentencex

    segment = sentencex.segment
    lengths: list[int] = []

    def counted(language: str, text: str) -> list[str]:
        lengths.append(len(text))
        return segment(language, text)

    monkeypatch.setattr(sentencex, "segment", counted)
    text = piece * (1_000_000 // len(piece))
    sentence_ends(text, "en")
    # A sentence of the whole text is looked for in windows that double: twice its length.
    assert sum(lengths) <= 4 * len(text)
    assert len(lengths) <= 2 * len(text) / WINDOW_CHARACTERS + 10


class Panic(BaseException):
    """As pyo3's: no Exception."""


def test_a_splitter_that_panics_loses_only_its_boundaries(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import sentencex

    def panic(language: str, text: str) -> list[str]:
        raise Panic(text)

    monkeypatch.setattr(sentencex, "segment", panic)
    assert parts("The secret tide is low. The ferry waits.") == [
        "The secret tide is low.",
        "The ferry waits.",
    ]
    assert caplog.records
    assert "secret" not in caplog.text + str([record.__dict__ for record in caplog.records])


def test_a_splitter_that_loses_text_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sentencex

    monkeypatch.setattr(sentencex, "segment", lambda language, text: ["The tide "])
    assert parts("The tide is low. It waits.") == ["The tide is low.", "It waits."]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_end_of_the_process_is_no_fault_of_the_splitter(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    import sentencex

    def end(language: str, text: str) -> list[str]:
        raise error

    monkeypatch.setattr(sentencex, "segment", end)
    with pytest.raises(error):
        sentence_ends("Text.", "en")
    assert error in sentences.NOT_OURS
