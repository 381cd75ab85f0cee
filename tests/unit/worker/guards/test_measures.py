"""Measures of an answer: its length, what repeats, what stayed as it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.guards.measures import (
    has_words_to_translate,
    is_left_as_it_was,
    length_of,
    repetition_of,
)

PROSE = (
    "The tide is low and the ferry waits at the harbour. Bartholomew gave the old key to the "
    "baker, who hung it behind the door where nobody would look for it before the winter."
)


@pytest.mark.parametrize(
    ("text", "at_least"),
    [
        ("the mill the mill the mill the mill the mill the mill", 0.5),
        (PROSE + " and so on" * 60, 0.5),
        (" ".join(f"word{each}" for each in range(5000)) + " no, no" * 200, 0.5),
        ("啊" * 100, 0.9),
        ("哈哈今天" * 30, 0.5),
        ("a" * 1000, 0.9),
        ("มากมาก" * 40, 0.5),
    ],
)
def test_a_loop_is_repetition(text: str, at_least: float) -> None:
    assert repetition_of(text) > at_least


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "Oui.",
        "no no no",
        PROSE,
        "今天天气很好，我们去港口看了一艘从北方来的旧船，然后在磨坊旁边吃了午饭。",
        " ".join(f"word{each}" for each in range(5000)),
    ],
)
def test_prose_is_no_repetition(text: str) -> None:
    assert repetition_of(text) < 0.1


@given(st.text(max_size=3000))
def test_repetition_is_between_0_and_1_for_any_text(text: str) -> None:
    assert 0.0 <= repetition_of(text) < 1.0


def test_lengths_are_comparable_between_scripts() -> None:
    assert length_of(" abc ") == 3
    assert length_of("港口") == 6
    assert length_of("항구") == 4


@pytest.mark.parametrize(
    ("source", "translation", "expected"),
    [
        ("The ferry waits.", "The ferry waits.", True),
        ("The ferry waits.", "the  FERRY waits.", True),
        ("The ferry waits.", "Le bac attend.", False),
        ("The old ferry waits at the harbour", "The old ferry waits at le harbour", True),
        ("Paris and Berlin", "Paris et Berlin", False),
    ],
)
def test_an_untranslated_sentence_is_recognised(
    source: str, translation: str, expected: bool
) -> None:
    assert is_left_as_it_was(source, translation) is expected


def test_a_single_name_is_not_untranslated() -> None:
    assert not has_words_to_translate("Paris")
    assert has_words_to_translate("New ferry")
    assert has_words_to_translate("港口")
