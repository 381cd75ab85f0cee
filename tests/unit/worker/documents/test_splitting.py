"""A text is cut where it ends something, and joined its pieces are the text again."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.documents import splitting as module
from worker.documents.graphemes import is_between_graphemes
from worker.documents.splitting import Boundary, boundary_at, piece_ends, pieces, plain_pieces

TEXTS = st.text(st.characters(), max_size=300) | st.lists(
    st.sampled_from(
        ["One. ", "two words ", "\n\n", "\r\n", "# Head\n", "今天天气很好。", "ประเทศไทย",
         "e\u0301", "👨‍👩‍👧‍👦", "🇫🇷", "مرحبا. ", "A\u2028.", "A\xa0.", "\ud800", "각", "word" * 30]
    ),
    max_size=60,
).map("".join)  # fmt: skip

FAMILY = "👨‍👩‍👧‍👦"
CUTTERS = pytest.mark.parametrize("cut", [pieces, plain_pieces])
Cut = Callable[[str, int], list[str]]


@CUTTERS
@given(text=TEXTS, max_characters=st.integers(1, 80))
def test_joined_pieces_are_the_text_and_none_is_too_long(
    cut: Cut, text: str, max_characters: int
) -> None:
    found = cut(text, max_characters)
    assert "".join(found) == text
    assert all(0 < len(each) <= max_characters for each in found)


@given(text=TEXTS, max_characters=st.integers(1, 60))
def test_window_by_window_the_pieces_tile_the_text_too(text: str, max_characters: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW_CHARACTERS", 64)
        ends = list(piece_ends(text, max_characters))
    starts = [0, *ends][: len(ends)]
    assert "".join(text[start:end] for start, end in zip(starts, ends, strict=True)) == text
    assert all(0 < end - start <= max_characters for start, end in zip(starts, ends, strict=True))


@CUTTERS
@pytest.mark.parametrize(
    "text",
    [
        "The wheel stood still. Nobody knew why. " * 30,
        "Das Rad stand still.\r\nNiemand wusste warum.\r\n\r\n" * 30,
        "| a | b |\n| - | - |\n" + "| one cell | another |\n" * 40,
        "- an item\n- another one\n" * 40,
        "السلام عليكم ورحمة الله. كيف الحال؟ " * 30,
    ],
)
def test_no_word_is_taken_apart_where_words_have_spaces(cut: Cut, text: str) -> None:
    found = cut(text, 90)
    for before, after in pairwise(found):
        assert not (before[-1].isalnum() and after[0].isalnum()), (before, after)


@CUTTERS
@pytest.mark.parametrize(
    "text", ["e\u0301" * 300, FAMILY * 100, "🇫🇷" * 200, "각" * 300, "👍🏽" * 200, "नमस्ते" * 100]
)
def test_no_character_is_taken_apart(cut: Cut, text: str) -> None:
    found = cut(text, 47)
    at = 0
    for piece in found[:-1]:
        at += len(piece)
        assert is_between_graphemes(text, at), (text[at - 3 : at], text[at : at + 3])


def test_chinese_is_cut_at_its_sentences_and_thai_not_within_a_word() -> None:
    assert all(each.endswith("。") for each in pieces("今天天气很好。我们去磨坊。" * 20, 40))
    words = "ประเทศไทยมีแม่น้ำหลายสาย"
    found = pieces(words * 20, 60)
    assert "ประเท" not in {each[-5:] for each in found[:-1]}, "ประเทศ is one word"


def test_headings_and_paragraphs_come_before_sentences() -> None:
    part = "One sentence here. Another there.\n\nA second paragraph. It ends."
    text = f"# One\n\n{part}\n\n# Two\n\n{part}\n"
    ends = list(piece_ends(text, 50))
    assert text.index("# Two") in ends
    assert {boundary_at(text, end) for end in ends[:-1]} == {Boundary.PARAGRAPH, Boundary.HEADING}


@pytest.mark.parametrize(
    ("before", "after", "boundary"),
    [
        ("The end.\n\n", "# Two\n", Boundary.HEADING),
        ("The end.\n\n", "Two", Boundary.PARAGRAPH),
        ("The end.\r\n\r\n", "Two", Boundary.PARAGRAPH),
        ("The end.\n", "Two", Boundary.LINE),
        ("The end. ", "Two", Boundary.SENTENCE),
        ("The end.\u201d ", "Two", Boundary.SENTENCE),
        ("今天天气很好。", "我", Boundary.SENTENCE),
        ("the ", "end", Boundary.NONE),
    ],
)
def test_the_strongest_boundary_at_a_place_is_found(
    before: str, after: str, boundary: Boundary
) -> None:
    assert boundary_at(before + after, len(before)) is boundary


class Panic(BaseException):
    """As a panic of Rust comes to Python."""


class Panics:
    def chunks(self, text: str) -> list[str]:
        raise Panic(text)


class Loses:
    def chunks(self, text: str) -> list[str]:
        return [text[:5], text[6:10]]


@pytest.mark.parametrize("broken", [Panics(), Loses()])
def test_a_splitter_that_fails_loses_only_its_boundaries(
    broken: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_splitter", lambda max_characters: broken)
    text = "A private sentence. Another private one. " * 10
    found = pieces(text, 60)
    assert "".join(found) == text
    assert all(each.endswith(". ") for each in found)
    assert "splitter" in caplog.text
    assert "private" not in caplog.text


@pytest.mark.parametrize(
    "text",
    ["x" * 1_000_000, "word " * 200_000, "\n" * 300_000, "# \n" * 50_000, "é\u0301" * 200_000,
     "." * 300_000, "x\u0301" + "\u0301" * 100_000],
)  # fmt: skip
def test_a_million_characters_are_cut(text: str) -> None:
    ends = list(piece_ends(text, 256))  # what is quadratic would outlast the test's time limit
    assert ends[-1] == len(text)
    assert ends == sorted(set(ends))
