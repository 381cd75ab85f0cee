"""Files in: documents of every kind become jobs, and each that cannot is told by a code."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.running.commands import CommandLine, ids
from tests.samples.documents import docx, epub, paragraph, pdf

EVERYTHING = ("results", "--state", "all", "--format", "jsonl", "--input")


@pytest.fixture
def reports(stored: CommandLine) -> Path:
    folder = stored.folder / "reports"
    (folder / "old").mkdir(parents=True)
    (folder / "a.txt").write_text("Plain.")
    (folder / "b.md").write_text("# Head\n\nMarked.")
    (folder / "c.html").write_text("<h1>Head</h1><p>A page.</p>")
    (folder / "old" / "d.docx").write_bytes(docx(paragraph("Of Word.")))
    (folder / "old" / "e.pdf").write_bytes(pdf(["Printed.", ""]))
    (folder / "old" / "f.epub").write_bytes(epub({"one.xhtml": "<p>A book.</p>"}))
    return folder


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_of_documents_is_a_batch_and_each_is_a_job(
    stored: CommandLine, reports: Path
) -> None:
    ended = stored("submit", "summarize", "reports/", "--batch", "b", "--errors", "errors.jsonl")

    assert ended.status == 0
    assert "enqueued 6 jobs as batch b, 1 with parts without text" in ended.out
    texts = {
        record["custom_id"]: record["input"]
        for record in map(json.loads, stored(*EVERYTHING).out.splitlines())
    }
    assert texts == {
        "a.txt": "Plain.",
        "b.md": "# Head\n\nMarked.",
        "c.html": "# Head\n\nA page.",
        "old/d.docx": "Of Word.",
        "old/e.pdf": "Printed.",
        "old/f.epub": "A book.",
    }
    assert "reports, file old/e.pdf: no text in page 2 of 2; the rest goes through" in ended.err
    [gap] = lines(stored.folder / "errors.jsonl")
    assert (gap["code"], gap["place"]) == ("parts_without_text", "file old/e.pdf")
    partial = stored(*EVERYTHING, "--metadata", "without_text=page 2 of 2")
    assert ids(partial) == ["old/e.pdf"]


def test_a_file_without_text_is_reported_with_a_code_and_the_others_go_on(
    stored: CommandLine, reports: Path
) -> None:
    (reports / "empty.txt").write_text(" \n")
    (reports / "locked.pdf").write_bytes(pdf(["Secret."], password="key"))
    (reports / "scan.pdf").write_bytes(pdf(["", ""]))
    (reports / "torn.docx").write_bytes(docx(paragraph("x"))[:200])
    (reports / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0")

    ended = stored(
        "submit", "summarize", "reports/", "--batch", "b", "--errors", "errors.jsonl", "--json"
    )

    assert ended.status == 1
    assert (ended.json["num_new"], ended.json["num_bad"], ended.json["num_partial"]) == (6, 5, 1)
    assert {str(each["place"]): each["code"] for each in lines(stored.folder / "errors.jsonl")} == {
        "file empty.txt": "invalid_contract",
        "file locked.pdf": "encrypted",
        "file old/e.pdf": "parts_without_text",
        "file photo.jpg": "not_text",
        "file scan.pdf": "no_text",
        "file torn.docx": "broken_file",
    }


def test_texts_in_no_unicode_are_read_in_the_named_encoding(
    stored: CommandLine, reports: Path
) -> None:
    latin = "Größe: “5 €”".encode("cp1252")
    (reports / "a.txt").write_bytes(latin)
    without = stored("submit", "summarize", "reports/", "--strict")
    stored("submit", "summarize", "reports/", "--encoding", "windows-1252")
    stored("submit", "summarize", "reports/a.txt", "--encoding", "latin-1")
    (stored.folder / "n.toml").write_text(
        'run_key = "n"\ntask = "summarize"\n'
        'source = { path = "reports/a.txt", encoding = "cp1252" }\n'
    )
    stored("nightly", "n.toml")
    unknown = stored("submit", "summarize", "reports/", "--encoding", "windows-9")
    of_no_use = stored("submit", "summarize", "A text.", "--encoding", "latin-1")

    assert "file a.txt is not UTF-8 text (byte 0xf6 at 2)" in without.err
    inputs = {
        (record["custom_id"], record["input"])
        for record in map(json.loads, stored(*EVERYTHING).out.splitlines())
    }
    assert [text for name, text in inputs if name == "a.txt"] == ["Größe: “5 €”"]
    assert ("b.md", "# Head\n\nMarked.") in inputs
    assert (unknown.status, of_no_use.status) == (1, 2)
    assert "there is no encoding 'windows-9'" in unknown.err


def test_a_broken_link_and_a_pipe_in_a_folder_are_reported_and_the_other_files_are_read(
    stored: CommandLine, reports: Path
) -> None:
    (reports / "gone.txt").symlink_to(reports / "nowhere.txt")
    (reports / "loop.txt").symlink_to(reports / "loop.txt")
    os.mkfifo(reports / "old" / "pipe.txt")
    (reports / "again").symlink_to(reports / "old")  # a folder that is not entered, as promised

    ended = stored("submit", "summarize", "reports/", "--batch", "b")

    assert ended.status == 1
    assert "enqueued 6 jobs as batch b, 3 rows left out" in ended.out
    for name, reason in (
        ("gone.txt", "it is a link that leads nowhere"),
        ("loop.txt", "it is a link that leads nowhere"),
        ("old/pipe.txt", "it is neither a file nor a folder"),
    ):
        assert f"file {name} cannot be read: {reason}" in ended.err


def test_strict_reads_twice_and_complains_once(stored: CommandLine, reports: Path) -> None:
    ended = stored("submit", "summarize", "reports/", "--strict", "--errors", "errors.jsonl")

    assert ended.status == 0
    assert ended.err.count("no text in page 2") == 1
    assert len(lines(stored.folder / "errors.jsonl")) == 1


def test_without_the_extra_the_other_files_go_on(
    stored: CommandLine, reports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pypdfium2", "mammoth"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed

    ended = stored("submit", "summarize", "reports/", "--batch", "b")
    alone = stored("submit", "summarize", "reports/old/e.pdf")

    assert ended.status == alone.status == 1
    assert "enqueued 4 jobs as batch b, 2 rows left out" in ended.out
    assert ended.err.count("pip install 'tidemill[files]'") == 2
    assert "pip install 'tidemill[files]'" in alone.err
    assert "nothing was enqueued" in alone.out


def test_documents_by_name_are_jobs_as_those_of_their_folder(
    stored: CommandLine, reports: Path
) -> None:
    arguments = ("submit", "translate", "--source-language", "en", "--target-language", "fr")
    ended = stored(*arguments, "reports/a.txt", "reports/b.md", "reports/old/d.docx")

    assert ended.status == 0
    assert ids(stored(*EVERYTHING)) == ["a.txt", "b.md", "old/d.docx"]


def test_errors_are_not_written_into_the_folder_that_is_read(
    stored: CommandLine, reports: Path
) -> None:
    for name in ("reports/a.txt", "reports/old/new.jsonl"):
        ended = stored("submit", "summarize", "reports/", "--errors", name)

        assert ended.status == 1
        assert "lies in the folder that is read" in ended.err
    assert (reports / "a.txt").read_text() == "Plain."
    assert stored(*EVERYTHING).out == ""


def test_a_night_takes_a_folder_of_documents(stored: CommandLine, reports: Path) -> None:
    (stored.folder / "n.toml").write_text(
        'run_key = "n-{date}"\ntask = "summarize"\nsource = { path = "reports" }\n'
    )
    assert stored("nightly", "n.toml").status == 0
    again = stored("nightly", "n.toml")

    assert (again.status, "already enqueued" in again.out) == (0, True)
    assert len(ids(stored(*EVERYTHING))) == 6
