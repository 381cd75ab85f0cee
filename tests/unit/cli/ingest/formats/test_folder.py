import os
from pathlib import Path
from typing import Any

import pytest

from cli.ingest import BadRow, Row, open_source, open_sources
from tests.samples.documents import pdf
from tests.unit.cli.ingest.formats.rows import read, write


def test_each_file_of_a_folder_is_a_text_and_its_name_the_custom_id(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "second")
    write(tmp_path / "a.txt", b"\xef\xbb\xbffirst")
    write(tmp_path / "c.bin", b"\x00\xff")
    write(tmp_path / ".hidden", "no")
    write(tmp_path / "~$d.docx", "no")
    (tmp_path / "none").mkdir()

    first, second, bad = read(open_source(tmp_path))

    assert first == Row(1, "file a.txt", {"text": "first", "custom_id": "a.txt"})
    assert second == Row(2, "file b.txt", {"text": "second", "custom_id": "b.txt"})
    assert isinstance(bad, BadRow)
    assert (bad.place, bad.code) == ("file c.bin", "not_text")


def test_a_file_whose_name_is_not_utf8_costs_itself_and_is_named(tmp_path: Path) -> None:
    write(tmp_path / os.fsdecode(b"b\xff.txt"), "text")
    write(tmp_path / "a.txt", "text")

    good, bad = read(open_source(tmp_path))

    assert isinstance(good, Row)
    assert isinstance(bad, BadRow)
    assert bad.place == "file b\ufffd.txt"
    assert "a name that is not UTF-8" in bad.fault
    assert "rename it" in bad.fault


def test_folders_within_a_folder_are_read_and_links_to_folders_are_not(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.txt", "a/b/d.txt", ".git/no.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, name)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "z.txt").symlink_to(tmp_path / "b.txt")

    rows = read(open_source(tmp_path))

    named = [(row.place, row.fields["custom_id"]) for row in rows if isinstance(row, Row)]
    names = ["a/b/d.txt", "a/c.txt", "b.txt", "z.txt"]
    assert named == [(f"file {name}", name) for name in names]


def test_a_folder_within_that_cannot_be_read_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    write(tmp_path / "a.txt", "text")
    scandir = os.scandir

    def refuse(path: Path) -> Any:  # whoever runs the tests may read everything
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    good, bad = read(open_source(tmp_path))

    assert isinstance(good, Row)
    assert bad == BadRow(2, "folder locked", "cannot be read: Permission denied")


def test_parts_without_text_are_kept_in_the_jobs_metadata(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(["One.", ""]))

    [row] = read(open_source(tmp_path / "a.pdf"))

    assert isinstance(row, Row)
    assert row.without_text == "page 2 of 2"
    assert row.fields == {
        "text": "One.",
        "custom_id": "a.pdf",
        "metadata.without_text": "page 2 of 2",
    }


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["jan"], ["1.txt"]),
        (["jan", "feb"], ["jan/1.txt", "feb/1.txt"]),
        (["jan/1.txt"], ["1.txt"]),
        (["jan/1.txt", "jan/../feb/1.txt"], ["jan/1.txt", "feb/1.txt"]),
        (["feb/1.txt", "feb/2.md"], ["1.txt", "2.md"]),
        (["rows.jsonl", "jan"], ["row", "1.txt"]),
    ],
)
def test_documents_of_several_places_have_names_that_tell_them_apart(
    tmp_path: Path, paths: list[str], names: list[str]
) -> None:
    for name in ("jan", "feb"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "1.txt", name)
    write(tmp_path / "two", "x")
    (tmp_path / "two").rename(tmp_path / "feb" / "2.md")
    write(tmp_path / "rows.jsonl", '{"text": "x", "custom_id": "row"}')
    if paths == ["jan", "feb"]:
        (tmp_path / "feb" / "2.md").unlink()

    rows = [
        row for source in open_sources([tmp_path / path for path in paths]) for row in read(source)
    ]

    assert [row.fields["custom_id"] for row in rows if isinstance(row, Row)] == names


def test_a_file_over_the_size_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.documents.reading.MAX_FILE_BYTES", 10)
    write(tmp_path / "a.txt", "x" * 11)

    [bad] = read(open_source(tmp_path))

    assert isinstance(bad, BadRow)
    assert "has 11 bytes; a document may have 10" in bad.fault
