"""What a part is told of that which stands before it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.documents.context import JOINT, Context
from worker.documents.headings import section_starts

TEXT = """\
# The mill
It was built long ago. It burned. It stands again.
## Wheels
There are two.
### Oak
Old.
## Stones
Four, from France.
```
# no heading
```
More.
# The ferry
It goes twice a day.
"""


def before(place: str, max_characters: int = 1_000, **asked: bool | int) -> list[str]:
    wanted = {"heading_path": False, "overlap_sentences": 0, **asked}
    context = Context(TEXT, **wanted)  # type: ignore[arg-type]
    return context.before(TEXT.index(place), max_characters).split(JOINT)[:-1]


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("# The mill", []),
        ("It burned", ["# The mill"]),
        ("There are", ["# The mill", "## Wheels"]),
        ("### Oak", ["# The mill", "## Wheels"]),
        ("Old.", ["# The mill", "## Wheels", "### Oak"]),
        ("## Stones", ["# The mill"]),
        ("More.", ["# The mill", "## Stones"]),
        ("# The ferry", []),
        ("twice", ["# The ferry"]),
    ],
)
def test_a_parts_context_has_the_headings_above_it(place: str, expected: list[str]) -> None:
    assert before(place, heading_path=True) == expected


def test_the_farthest_context_is_left_out_first() -> None:
    assert before("Old.", 19, heading_path=True) == ["### Oak"]
    assert before("Old.", 5, heading_path=True) == []


def test_a_parts_context_has_the_sentences_before_it() -> None:
    assert before("It stands", overlap_sentences=1) == ["It burned."]
    assert before("It stands", overlap_sentences=9) == [
        "# The mill\nIt was built long ago.",
        "It burned.",
    ]
    assert before("# The mill", overlap_sentences=2) == []


def test_headings_go_before_sentences() -> None:
    assert before("It stands", heading_path=True, overlap_sentences=1) == [
        "# The mill",
        "It burned.",
    ]


def test_a_section_begins_at_a_heading_that_is_not_right_below_another() -> None:
    text = "# A\n\n## B\n\nOne.\n### C\nTwo.\n```\n# no\n```\n# D\n"
    assert sorted(section_starts(text)) == [text.index(each) for each in ("# A", "### C", "# D")]


@given(
    st.lists(st.sampled_from(["# a\n", "## b\n", "```\n", "One. ", "\n", " ", "x" * 50])).map(
        "".join
    ),
    st.integers(0, 300),
    st.integers(0, 200),
    st.integers(0, 5),
)
def test_a_context_is_never_longer_than_its_limit(
    text: str, start: int, max_characters: int, overlap: int
) -> None:
    context = Context(text, heading_path=True, overlap_sentences=overlap)
    told = context.before(min(start, len(text)), max_characters)
    assert len(told) <= min(max_characters, context.max_characters)
    assert all(each in text for each in told.split(JOINT))
