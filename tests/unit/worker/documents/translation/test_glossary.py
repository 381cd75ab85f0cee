"""Terms of a glossary: where they stand, and whether a translation has them."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.documents.translation.glossary import Glossary, folded, missed_terms
from worker.documents.translation.placeholders import find_spans


def found(entries: dict[str, str | None], text: str) -> list[tuple[str, str]]:
    terms = Glossary(entries).find(text, find_spans(text))
    return [(text[each.start : each.end], each.translation) for each in terms]


@pytest.mark.parametrize(
    ("entries", "text", "expected"),
    [
        # The longest goes first, and none within another.
        ({"sea": "mer", "sea salt": "sel marin"}, "Sea salt of the sea", ["Sea salt", "sea"]),
        ({"a b": "x", "b c": "y"}, "a b c", ["a b"]),
        # Where words begin and end.
        ({"port": "port"}, "The port, ports, export; port's (port) port_2 port2", ["port"] * 3),
        ({"e-mail": "courriel"}, "An e-mail and e\u2011mail", ["e-mail", "e\u2011mail"]),
        ({"C++": None}, "C++ and C++11, C+", ["C++", "C++"]),
        ({".NET": None}, "the .NET way", [".NET"]),
        ({"New York": "x"}, "New York, New\u00a0York", ["New York", "New\u00a0York"]),
        # Scripts without spaces, and with particles.
        ({"港口": "harbour"}, "今天港口很好", ["港口"]),
        ({"京都": "Kyoto", "東京都": "Tokyo"}, "東京都と京都", ["東京都", "京都"]),
        ({"ロンド": "rondo"}, "ロンドンでロンドを", ["ロンド"]),
        ({"Tidemill": None}, "我用Tidemill工作", ["Tidemill"]),
        ({"ท่าเรือ": "port"}, "ที่ท่าเรือวันนี้", ["ท่าเรือ"]),
        ({"학교": "school"}, "학교에서 대학교", ["학교"]),
        ({"cafe": "x"}, "cafe cafe\u0301", ["cafe"]),
        # Normal forms.
        ({"café": "x"}, unicodedata.normalize("NFD", "un café"), ["cafe\u0301"]),
        (
            {unicodedata.normalize("NFD", "café"): "x"},
            unicodedata.normalize("NFC", "un café"),
            ["café"],
        ),
        # Case.
        ({"harbour": "port"}, "Harbour HARBOUR harbour", ["Harbour", "HARBOUR", "harbour"]),
        ({"Apple": None}, "Apple apple APPLE", ["Apple", "APPLE"]),
        ({"US": "les États-Unis"}, "US us Us", ["US"]),
        ({"it": "x"}, "İt it", ["it"]),
        # Not in what stays untouched anyway.
        ({"name": "nom"}, "{name} `name` https://x.org/name name", ["name"]),
        ({}, "harbour", []),
    ],
)
def test_terms_are_found_at_word_boundaries(
    entries: dict[str, str | None], text: str, expected: list[str]
) -> None:
    assert [term for term, _ in found(entries, text)] == expected


@pytest.mark.parametrize(
    ("entries", "text", "expected"),
    [
        ({"harbour": "port"}, "Harbour HARBOUR harbour", ["Port", "PORT", "port"]),
        ({"Hafen": "port"}, "Hafen", ["port"]),
        ({"harbour": "Port Royal"}, "Harbour harbour", ["Port Royal", "Port Royal"]),
        ({"tide": None}, "Tide tide", ["Tide", "tide"]),
    ],
)
def test_a_translated_term_follows_the_case_of_its_source(
    entries: dict[str, str | None], text: str, expected: list[str]
) -> None:
    assert [translation for _, translation in found(entries, text)] == expected


@pytest.mark.parametrize(
    ("entries", "source", "translation", "missing"),
    [
        ({"harbour": "port"}, "the harbour", "le port", {}),
        ({"harbour": "port"}, "The harbour", "Port et mer", {}),
        ({"harbour": "port"}, "the harbour", "le havre", {"port": 1}),
        ({"harbour": "port"}, "harbour and harbour", "le port", {"port": 1}),
        ({"harbour": "port"}, "the harbour", "la porte", {"port": 1}),
        (
            {"harbour": "port", "fishery": "port de pêche"},
            "harbour, fishery",
            "port de pêche",
            {"port": 1},
        ),
        ({"Tidemill": None}, "Tidemill runs", "tidemill tourne", {"Tidemill": 1}),
        ({"Tidemill": None}, "Tidemill runs", "l’outil Tidemill tourne", {}),
        ({"harbour": "港口"}, "the harbour", "今天港口很好", {}),
        ({"water": "l'eau"}, "water", "de l’eau", {}),
    ],
)
def test_missing_placeholders_of_a_translation_are_counted(
    entries: dict[str, str | None], source: str, translation: str, missing: dict[str, int]
) -> None:
    assert missed_terms(Glossary(entries).find(source), translation) == missing


words = st.text(
    st.sampled_from("aBéß ŁİⅠ港ท่카ー'-\u0301\u00a0\u200d\ud800🙂1"), min_size=1, max_size=4
)


@given(st.dictionaries(words.filter(str.strip), st.none() | words, max_size=5), words)
def test_terms_are_in_order_and_apart_in_any_text(
    entries: dict[str, str | None], text: str
) -> None:
    assert len(folded(text)) == len(text)
    at = 0
    for term in Glossary(entries).find(text * 3):
        assert at <= term.start < term.end <= 3 * len(text)
        at = term.end
    missed_terms(Glossary(entries).find(text), text)


def test_thousands_of_terms_in_a_long_text_take_linear_time() -> None:
    entries: dict[str, str | None] = {f"term number {each}": None for each in range(5000)}
    text = "term number " * 20_000 + "4999"
    assert len(Glossary(entries).find(text)) == 1
