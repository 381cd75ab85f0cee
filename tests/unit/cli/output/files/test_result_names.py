"""An output is named after its source, and no name leads out of the folder."""

from pathlib import PurePath, PurePosixPath
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.output.files.result_names import TakenNames, result_name

JOB = UUID("01a20a9c-8646-70ad-ab14-32e4e2328b4c")


@pytest.mark.parametrize(
    ("custom_id", "task", "name"),
    [
        ("a.txt", "summarize", "a.txt"),
        ("old/Ä b.MD", "translate", "old/Ä b.MD"),
        ("film.srt", "translate", "film.srt"),
        ("film.vtt", "summarize", "film.vtt.txt"),
        ("page.html", "translate", "page.html.md"),
        ("page.html", "summarize", "page.html.txt"),
        ("a.docx", "translate", "a.docx.md"),
        ("a.pdf", "translate", "a.pdf.txt"),
        ("n-1", "generate", "n-1.txt"),
        ("no. 3.14", "generate", "no. 3.14.txt"),
        (None, "chat", f"{JOB}.txt"),
        ("/", "chat", f"{JOB}.txt"),
        # Names that lead out of a folder or to a device, or are hidden.
        ("../../etc/passwd", "summarize", "__/__/etc/passwd.txt"),
        ("/etc/cron.d/x.txt", "summarize", "etc/cron.d/x.txt"),
        ("a/../b.txt", "summarize", "a/__/b.txt"),
        ("C:\\Windows\\a.txt", "summarize", "C__Windows_a.txt"),
        ("..\\a.txt", "summarize", "_._a.txt"),
        (".tidemill-results", "summarize", "_tidemill-results.txt"),
        ("CON", "summarize", "_CON.txt"),
        ("con.txt", "summarize", "_con.txt"),
        ("lpt1 .txt", "summarize", "_lpt1 .txt"),
        ("console.txt", "summarize", "console.txt"),
        ("dir. /a.txt", "summarize", "dir._/a.txt"),
        ('a<b>:"|?*.txt', "summarize", "a_b______.txt"),
        ("a\n\x1b[2J\u202etxt.md", "summarize", "a__[2J_txt.md"),
    ],
)
def test_a_name_stays_as_near_to_its_source_as_is_safe(
    custom_id: str | None, task: str, name: str
) -> None:
    assert result_name(custom_id, JOB, task) == PurePosixPath(name)


@given(st.text(max_size=300) | st.text(st.sampled_from("../\\ :~aA.\x00"), max_size=40))
def test_no_name_leads_out_of_the_folder_or_is_too_long(custom_id: str) -> None:
    name = result_name(custom_id, JOB, "summarize")

    assert not name.is_absolute()
    assert name.suffix
    for part in name.parts:
        assert not part.startswith(".")
        assert not part.endswith((" ", "."))
        assert part not in ("", ".", "..")
        assert "\\" not in part
        assert "\x00" not in part
        assert len(part.encode()) <= 255


def test_long_names_that_differ_at_their_end_stay_apart() -> None:
    names = {result_name("ä" * 240 + end + ".txt", JOB, "summarize") for end in "ab"}
    assert len(names) == 2
    assert {name.suffix for name in names} == {".txt"}


def test_no_two_jobs_get_one_file() -> None:
    taken = TakenNames()
    names = ["a.txt", "A.txt", "a.txt", "e\u0301.txt", "\u00e9.txt", "a.txt/b.txt", "c/d.txt", "c"]

    assert [str(taken.take(PurePosixPath(name))) for name in names] == [
        "a.txt",
        "A (2).txt",
        "a (3).txt",
        "e\u0301.txt",
        "\u00e9 (2).txt",
        "a (4).txt/b.txt",
        "c/d.txt",
        "c (2)",
    ]


@given(st.lists(st.text(st.sampled_from("aA/.é"), min_size=1, max_size=5), max_size=12))
def test_taken_names_can_all_be_made(custom_ids: list[str]) -> None:
    taken = TakenNames()
    names = [taken.take(result_name(each, JOB, "chat")) for each in custom_ids]

    lowered = [PurePath(str(name).casefold()) for name in names]
    assert len(set(lowered)) == len(lowered)
    folders = {parent for name in lowered for parent in name.parents}
    assert not folders & set(lowered)
