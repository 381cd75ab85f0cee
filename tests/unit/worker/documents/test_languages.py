"""The language of a text, among those that a model knows."""

import pytest

from worker.documents.languages import detect, short_code

ENGLISH = "The tide is low and the ferry waits at the harbour."
GERMAN = "Die Flut ist niedrig und die Fähre wartet im Hafen."


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("fra_Latn", "fr"),
        ("fr-CA", "fr"),
        ("en_XX", "en"),
        ("zho_Hans", "zh"),
        ("yue_Hant", "zh"),
        ("pes_Arab", "fa"),
        ("nob_Latn", "no"),
        ("deu", "de"),
        (">>deu<<", "de"),
        ("xx", "xx"),
        ("", ""),
    ],
)
def test_language_codes_are_shortened(code: str, expected: str) -> None:
    assert short_code(code) == expected


@pytest.mark.parametrize(
    ("text", "among", "expected"),
    [
        (ENGLISH, (), "en"),
        (GERMAN, (), "de"),
        (GERMAN, ("en", "de"), "de"),
        (GERMAN, ("eng_Latn", "deu_Latn"), "deu_Latn"),
        (ENGLISH, ("en",), "en"),
        ("今天天气很好，我们去港口。", ("zh", "en"), "zh"),
        (f"{GERMAN} {GERMAN} {GERMAN} {ENGLISH}", ("en", "de"), "de"),
    ],
)
def test_a_clear_language_is_detected(text: str, among: tuple[str, ...], expected: str) -> None:
    guess = detect(text, among)
    assert guess.language == expected
    assert guess.confidence >= 0.5


@pytest.mark.parametrize(
    ("text", "among"),
    [
        (GERMAN, ("en", "fr")),
        ("Das ist gut", ("en", "de")),
        ("12345 67890 12345 67890 12345", ()),
        ("🙂" * 40, ()),
        ("\ud800", ()),
        ("", ()),
    ],
)
def test_an_unclear_language_is_not_guessed(text: str, among: tuple[str, ...]) -> None:
    guess = detect(text, among)
    assert guess.language is None
    assert guess.candidates, "somebody is to choose among them"


def test_a_text_in_an_unexpected_language_is_reported_with_its_language() -> None:
    assert detect(GERMAN, ("en", "fr")).candidates[0][0] == "de"
