"""Files out: a file for each job of a batch, once, and nowhere but in the folder."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.output.files.result_folder import RECORD, ResultFolder
from db.reading.results import find_results
from db.session import Database
from db.states import JobState
from tests.running.commands import CommandLine
from tests.samples.jobs import answer, set_columns, succeed

Submit = Callable[..., None]
TO_FOLDER = ("results", "--batch", "b", "--to-folder", "out")


@pytest.fixture
def database(stored: CommandLine, database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def submit(stored: CommandLine) -> Submit:
    def submit(*custom_ids: str | None, task: str = "summarize") -> None:
        rows = [{"text": "x", **({"custom_id": each} if each else {})} for each in custom_ids]
        stored.write("a.jsonl", *rows)
        languages = ("--source-language", "en", "--target-language", "fr")
        more = languages if task == "translate" else ()
        assert stored("submit", task, "a.jsonl", "--batch", "b", *more).status == 0

    return submit


def answer_all(database: Database, of: Callable[[str], str] = "of {}".format) -> None:
    for job in list(find_results(state="queued", database=database)):
        succeed(database, job.id, answer(of(job.custom_id or "nameless")))


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes().decode()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD
    }


def test_each_input_has_a_file_under_its_own_name(stored: CommandLine, database: Database) -> None:
    source = stored.folder / "letters"
    (source / "old").mkdir(parents=True)
    for name in ("a.txt", "old/b.md", "film.srt", "page.html"):
        (source / name).write_text("A text.")
    languages = ("--source-language", "en", "--target-language", "fr")
    assert stored("submit", "translate", "letters/", "--batch", "b", *languages).status == 0
    answer_all(database, "Größe\r\nof {}\n".format)

    ended = stored(*TO_FOLDER)

    assert (ended.status, ended.out) == (0, "wrote 4 files to out\n")
    assert files(stored.folder / "out") == {
        "a.txt": "Größe\r\nof a.txt\n",
        "film.srt": "Größe\r\nof film.srt\n",
        "old/b.md": "Größe\r\nof old/b.md\n",
        "page.html.md": "Größe\r\nof page.html\n",
    }


def test_running_again_writes_what_is_missing_and_touches_nothing_else(
    stored: CommandLine, submit: Submit, database: Database
) -> None:
    submit("a.txt", "b.txt", "c.txt")
    for job in list(find_results(state="queued", database=database))[:2]:
        succeed(database, job.id, answer("first"))
    early = stored(*TO_FOLDER)
    assert (early.status, "wrote 2 files" in early.out) == (1, True)
    assert "1 job not finished" in early.err
    out = stored.folder / "out"
    (out / "a.txt").write_text("edited since")
    (out / "b.txt").unlink()
    answer_all(database)

    ended = stored(*TO_FOLDER)

    assert (ended.status, ended.out) == (0, "wrote 2 files to out, 1 was there before\n")
    assert files(out) == {"a.txt": "edited since", "b.txt": "first", "c.txt": "of c.txt"}
    assert stored(*TO_FOLDER).out == "wrote 0 files to out, 3 were there before\n"


def test_a_file_that_we_did_not_write_is_never_overwritten(
    stored: CommandLine, submit: Submit, database: Database
) -> None:
    submit("a.txt", "b.txt", "c.txt/d.txt")
    answer_all(database)
    out = stored.folder / "out"
    out.mkdir()
    (out / "a.txt").write_text("of somebody else")
    (out / "b.txt").write_text("of b.txt")  # what would be written, whoever wrote it
    (out / "c.txt").write_text("in the way of a folder")

    ended = stored(*TO_FOLDER)

    assert ended.status == 1
    assert "not written: 2" in ended.err
    assert "a.txt: a file of that name is there already, with something else in it" in ended.err
    assert files(out)["a.txt"] == "of somebody else"
    assert files(out)["c.txt"] == "in the way of a folder"
    assert len(files(out)) == 3


def test_jobs_of_one_name_get_files_of_their_own_and_the_same_in_the_next_start(
    stored: CommandLine, submit: Submit, database: Database
) -> None:
    submit("a.txt", "A.TXT", "../a.txt", None, "nul", "x" * 250)
    answer_all(database)

    ended = stored(*TO_FOLDER)

    out = stored.folder / "out"
    before = files(out)
    assert ended.status == 0
    assert (before["a.txt"], before["A (2).TXT"]) == ("of a.txt", "of A.TXT")
    assert (before["__/a.txt"], before["_nul.txt"]) == ("of ../a.txt", "of nul")
    assert len(before) == 6
    assert "under another name, for theirs was taken: 1\n  A (2).TXT" in ended.err
    (out / "A (2).TXT").unlink()
    assert stored(*TO_FOLDER).status == 0
    assert files(out) == before
    assert not (stored.folder / "a.txt").exists()


def test_no_link_leads_out_of_the_folder(
    stored: CommandLine, submit: Submit, database: Database
) -> None:
    submit("sub/a.txt", "file.txt", "b.txt")
    answer_all(database)
    elsewhere, out = stored.folder / "elsewhere", stored.folder / "out"
    elsewhere.mkdir()
    out.mkdir()
    (out / "sub").symlink_to(elsewhere)
    (out / "file.txt").symlink_to(elsewhere / "made.txt")

    ended = stored(*TO_FOLDER)

    assert ended.status == 1
    assert "sub/a.txt: a link leads out of the folder" in ended.err
    assert list(elsewhere.iterdir()) == []
    assert (out / "b.txt").read_text() == "of b.txt"


def test_failed_jobs_are_listed_at_the_end(
    stored: CommandLine, submit: Submit, database: Database
) -> None:
    submit("a.txt", "b.txt", "c.txt")
    first, second, third = find_results(state=None, database=database)
    succeed(database, first.id, answer("text"))
    fault = {"error_code": "prompt_too_long", "error_message": "it is\ntoo long"}
    set_columns(database, [second.id], state=JobState.FAILED, **fault)
    set_columns(database, [third.id], state=JobState.CANCELLED)

    ended = stored(*TO_FOLDER)

    assert ended.status == 1
    assert ended.err.splitlines()[-3:] == [
        "tidemill: without a result: 2",
        "  b.txt: prompt_too_long: it is\\ntoo long",
        "  c.txt: cancelled",
    ]
    assert files(stored.folder / "out") == {"a.txt": "text"}


def test_an_end_in_the_middle_leaves_whole_files_and_the_next_start_goes_on(
    stored: CommandLine, submit: Submit, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit("a.txt", "b.txt", "c.txt")
    answer_all(database)
    replace, names = Path.replace, []

    def end(path: Path, to: Path) -> Path:
        names.append(to.name)
        if to.name == "b.txt":
            raise KeyboardInterrupt
        return replace(path, to)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", end)
        ended = stored(*TO_FOLDER)
    out = stored.folder / "out"
    assert (ended.status, files(out)) == (130, {"a.txt": "of a.txt"})
    assert "1 file written; the same command, run again, goes on" in ended.err
    with (out / RECORD).open("ab") as record:  # a kill in the middle of a line
        record.write(b'{"job": "01a2')

    assert stored(*TO_FOLDER).status == 0
    assert files(out) == {f"{name}.txt": f"of {name}.txt" for name in "abc"}
    assert stored(*TO_FOLDER).out == "wrote 0 files to out, 3 were there before\n"


def test_two_commands_do_not_write_to_one_folder_at_once(
    stored: CommandLine, submit: Submit, database: Database
) -> None:
    submit("a.txt")
    answer_all(database)
    with ResultFolder(stored.folder / "out"):
        ended = stored(*TO_FOLDER)

    assert (ended.status, "another command is writing" in ended.err) == (1, True)
    assert stored(*TO_FOLDER).status == 0


def test_answers_made_from_a_part_of_a_source_are_named(
    stored: CommandLine, submit: Submit, database: Database
) -> None:
    stored.write("a.jsonl", {"text": "x", "custom_id": "a.pdf", "metadata": {"without_text": "1"}})
    assert stored("submit", "summarize", "a.jsonl", "--batch", "b").status == 0
    answer_all(database)

    ended = stored(*TO_FOLDER)

    assert ended.status == 0
    assert "made from a part of the source only: 1\n  a.pdf.txt" in ended.err


@pytest.mark.parametrize(
    ("arguments", "status", "fault"),
    [
        (("--to-folder", "out"), 2, "needs the --batch"),
        ((*TO_FOLDER[1:], "--format", "csv"), 2, "takes a whole --batch and nothing beside it"),
        ((*TO_FOLDER[1:], "--limit", "5"), 2, "--limit"),
        ((*TO_FOLDER[1:], "-o", "a.csv"), 2, "--output"),
        (("--batch", "nosuch", "--to-folder", "out"), 1, "there is no batch 'nosuch'"),
        (("--batch", "b", "--to-folder", "a.jsonl"), 1, "a.jsonl cannot be written"),
    ],
)
def test_impossible_uses_of_to_folder_are_refused_and_write_nothing(
    stored: CommandLine, submit: Submit, arguments: tuple[str, ...], status: int, fault: str
) -> None:
    submit("a.txt")

    ended = stored("results", *arguments)

    assert (ended.status, fault in " ".join(ended.err.split())) == (status, True), ended.err
    assert not (stored.folder / "out").exists()
    assert json.loads((stored.folder / "a.jsonl").read_text())["custom_id"] == "a.txt"
