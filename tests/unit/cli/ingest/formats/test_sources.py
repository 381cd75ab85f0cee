import gzip
import json
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli.errors import SourceEmpty, SourceUnusable
from cli.ingest import BadRow, Row, Source, looks_like_source, open_source, open_sources
from cli.ingest.formats.jsonl import parse_line
from cli.ingest.formats.sql import SqlSource
from tests.documents import pdf


def read(source: Source) -> list[Row | BadRow]:
    return list(source.rows(lambda columns: None))


def columns_of(source: Source) -> list[str]:
    told: list[str] = []

    def keep(columns: Sequence[str]) -> None:
        told.extend(columns)

    list(source.rows(keep))
    return told


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# --- JSON lines ------------------------------------------------------------------------------


def test_a_broken_line_costs_itself_and_keeps_its_number(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"text": "one"}\n{"text": "two\n\n{"text": "three"}\n')

    first, broken, third = read(open_source(file))

    assert first == Row(1, "line 1", {"text": "one"})
    assert isinstance(broken, BadRow)
    assert (broken.place, broken.fault[:17]) == ("line 2", "is not valid JSON")
    assert third == Row(4, "line 4", {"text": "three"})


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"[1]", "is not a JSON object"),
        (b'{"text": "\xff"}', "is not UTF-8 (byte 0xff at 10)"),
        (b"[" * 100_000, "is not valid JSON: it is nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "is not valid JSON: a number has too many digits"),
        (b'{"text": 1,}', "is not valid JSON:"),
    ],
)
def test_a_broken_json_line_is_reported_with_its_fault(line: bytes, fault: str) -> None:
    found = parse_line(line)

    assert isinstance(found, str)
    assert found.startswith(fault)


def test_a_line_beyond_all_measure_is_skipped_without_being_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.ingest.formats.jsonl.MAX_LINE_BYTES", 100)
    file = write(tmp_path / "a.jsonl", '{"text": "' + "x" * 500 + '"}\n{"text": "two"}')

    long, second = read(open_source(file))

    assert isinstance(long, BadRow)
    assert "longer than 100 bytes" in long.fault
    assert second == Row(2, "line 2", {"text": "two"})


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n')

    assert read(open_source(file)) == [Row(1, "line 1", {"text": "one"})]


def test_a_file_knows_how_much_of_it_has_been_read(tmp_path: Path) -> None:
    line = json.dumps({"text": "x" * 1000}) + "\n"
    source = open_source(write(tmp_path / "a.jsonl", line * 5000))
    rows = source.rows(lambda columns: None)

    fractions = [source.fraction or 0.0 for _ in rows]

    assert 0 < fractions[0] < 0.5
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_json_lines_in_another_encoding_are_refused_once_and_as_that(
    tmp_path: Path, encoding: str
) -> None:
    file = write(tmp_path / "a.jsonl", '{"text": "é"}\n'.encode(encoding) * 3)

    with pytest.raises(SourceUnusable, match="is UTF-16, by its look; save it as UTF-8"):
        read(open_source(file))


def test_a_compressed_file_is_refused_with_the_way_to_read_it(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"text": "one"}\n')

    with pytest.raises(SourceUnusable, match=r"is compressed; `gunzip -c"):
        read(open_source(write(tmp_path / "a.jsonl", packed)))
    with pytest.raises(SourceUnusable, match=r"`gunzip -c .*a\.jsonl\.gz \| tidemill submit"):
        open_source(write(tmp_path / "a.jsonl.gz", packed))


def test_latin_1_and_a_name_twice_cost_their_own_lines(tmp_path: Path) -> None:
    lines = b'{"text": "caf\xe9"}\r\n\r\n{"text": "a", "text": "b"}\r\n{"text": "one"}'

    latin, twice, good = read(open_source(write(tmp_path / "a.jsonl", lines)))

    fault = "is not UTF-8 (byte 0xe9 at 13); save the file as UTF-8, or name its encoding"
    assert latin == BadRow(1, "line 1", fault)
    assert twice == BadRow(3, "line 3", "has a name twice in one object; which of them is meant?")
    assert good == Row(4, "line 4", {"text": "one"})


# --- CSV -------------------------------------------------------------------------------------


def test_csv_leaves_empty_cells_out_and_reads_json_where_it_belongs(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.csv",
        "custom_id,text,seed,stop,metadata.station\n"
        '1,"two\nlines",,,\n'
        '2,[not json],7,"[""."", ""!""]",north\n',
    )

    assert read(open_source(file)) == [
        Row(2, "line 2", {"custom_id": "1", "text": "two\nlines"}),
        Row(
            4,
            "line 4",
            {
                "custom_id": "2",
                "text": "[not json]",
                "seed": "7",
                "stop": [".", "!"],
                "metadata.station": "north",
            },
        ),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_finds_its_delimiter(tmp_path: Path, delimiter: str) -> None:
    text = "custom_id,text\n1,one\n".replace(",", delimiter)

    assert read(open_source(write(tmp_path / "a.csv", text))) == [
        Row(2, "line 2", {"custom_id": "1", "text": "one"})
    ]


def test_a_row_of_another_width_is_bad_and_the_next_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "custom_id,text\n1,a,b\n2\n\n3,c\n")

    wide, narrow, good = read(open_source(file))

    assert wide == BadRow(2, "line 2", "has 3 cells where the header has 2")
    assert narrow == BadRow(3, "line 3", "has 1 cell where the header has 2")
    assert good == Row(5, "line 5", {"custom_id": "3", "text": "c"})


@pytest.mark.parametrize(
    "after",
    ["3,c\n4,d\n", '3,"c"\n4,"d"\n', '3,"c, ""d"""\n4,"e\nf"\n'],
    ids=["to the end", "to the next quote", "to a cell of two lines"],
)
def test_a_quote_that_is_not_closed_costs_its_own_row(tmp_path: Path, after: str) -> None:
    whole, torn = "custom_id,text\n1,a\n", 'custom_id,text\n1,a\n2,"b\n'
    good = read(open_source(write(tmp_path / "whole.csv", whole + after)))
    assert all(isinstance(row, Row) for row in good)

    first, bad, *rest = read(open_source(write(tmp_path / "torn.csv", torn + after)))

    assert first == good[0]
    assert bad == BadRow(3, "line 3", "is not valid CSV: it opens a quote and does not close it")
    assert [row.fields for row in rest if isinstance(row, Row)] == [
        row.fields for row in good[1:] if isinstance(row, Row)
    ]
    assert [row.position for row in rest] == [row.position + 1 for row in good[1:]]


def test_text_behind_a_closed_quote_makes_a_bad_row(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", 'custom_id,text\n1,"a" b\n2,b "c"\n')

    bad, good = read(open_source(file))

    assert isinstance(bad, BadRow)
    assert bad.place == "line 2"
    assert bad.fault.startswith("is not valid CSV: ")
    assert good == Row(3, "line 3", {"custom_id": "2", "text": 'b "c"'})


def test_bytes_that_are_no_utf8_cost_their_own_row(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", b"text\ncaf\xe9\nplain\n")

    bad, good = read(open_source(file))

    fault = "is not UTF-8 in text (byte 0xe9 at 3); save the file as UTF-8, or name its encoding"
    assert bad == BadRow(2, "line 2", fault)
    assert good == Row(3, "line 3", {"text": "plain"})


@pytest.mark.parametrize(
    ("encoding", "fault"),
    [
        ("utf-16-le", "is UTF-16, by its look; save it as UTF-8, or name its encoding"),
        ("latin-1", "is not UTF-8 text; save it as UTF-8"),
    ],
)
def test_a_header_in_another_encoding_is_refused_as_that(
    tmp_path: Path, encoding: str, fault: str
) -> None:
    file = write(tmp_path / "a.csv", "text,métadonnée\nun,deux\n".encode(encoding))

    with pytest.raises(SourceUnusable, match=fault):
        read(open_source(file))


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("cp1252", "windows-1252"),
        ("cp1252", "latin-1"),  # as the web means it
        ("utf-8", "windows-1252"),
        ("utf-16", None),  # as Excel writes "Unicode text"
        ("utf-16-le", "utf-16-le"),
        ("shift_jis", "Shift_JIS"),
    ],
)
def test_csv_is_read_by_its_mark_or_in_the_encoding_that_somebody_names(
    tmp_path: Path, written: str, named: str | None
) -> None:
    text = "表" if written == "shift_jis" else "Größe, 5 €" if written == "cp1252" else "é 表"
    file = write(tmp_path / "a.csv", f'text\n"{text}"\nplain\n'.encode(written))

    assert read(open_source(file, named)) == [
        Row(2, "line 2", {"text": text}),
        Row(3, "line 3", {"text": "plain"}),
    ]


def test_a_byte_that_the_named_encoding_does_not_have_costs_its_own_row(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", b"text\nab\x81\ncaf\xe9\n")

    bad, good = read(open_source(file, "windows-1252"))

    assert isinstance(bad, BadRow)
    assert bad.fault.startswith("is not CP1252 in text (byte 0x81 at 2)")
    assert good == Row(3, "line 3", {"text": "café"})


def test_a_torn_utf_16_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "text\none\n".encode("utf-16") + b"x")
    with pytest.raises(SourceUnusable, match="is not UTF-16 to its end"):
        read(open_source(file))


def test_json_lines_are_read_in_the_encoding_that_somebody_names(tmp_path: Path) -> None:
    lines = b'{"text": "caf\xe9"}\n' + '{"text": "é"}\n'.encode()
    assert read(open_source(write(tmp_path / "a.jsonl", lines), "windows-1252")) == [
        Row(1, "line 1", {"text": "café"}),
        Row(2, "line 2", {"text": "é"}),
    ]


def test_an_encoding_that_there_is_not_or_that_is_of_no_use_is_refused(tmp_path: Path) -> None:
    for name in ("windows-9", "base64", "rot13", ""):
        with pytest.raises(SourceUnusable, match="there is no encoding"):
            open_source(write(tmp_path / "a.csv", "text\n"), name)
    with pytest.raises(SourceUnusable, match="whose texts are UTF-8"):
        open_source(write(tmp_path / "a.parquet", "x"), "latin-1")


@pytest.mark.parametrize("text", ["", "\n\n", "a,a\n1,2\n"])
def test_csv_without_a_usable_header_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SourceUnusable):
        read(open_source(write(tmp_path / "a.csv", text)))


# --- Parquet ---------------------------------------------------------------------------------


def test_parquet_columns_are_fields_and_null_is_left_out(tmp_path: Path) -> None:
    metadata = pa.array(
        [{"station": "north", "gate": None}, None],
        pa.struct([("station", pa.string()), ("gate", pa.string())]),
    )
    table = pa.table({"custom_id": [1, 2], "text": ["one", None], "metadata": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")

    assert read(source) == [
        Row(1, "row 1", {"custom_id": "1", "text": "one", "metadata": {"station": "north"}}),
        Row(2, "row 2", {"custom_id": "2"}),
    ]
    assert columns_of(source) == ["custom_id", "text", "metadata"]


def test_what_is_no_parquet_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SourceUnusable, match="is not a Parquet file"):
        read(open_source(write(tmp_path / "a.parquet", "text\n")))


def test_a_row_that_parquet_cannot_give_is_bad_and_the_rest_is_read(tmp_path: Path) -> None:
    invalid = pa.array([b"one", b"caf\xe9", b"three"], pa.binary()).view(pa.string())
    twice = pa.array(
        [[("a", "1")], [], [("a", "1"), ("a", "2")]], pa.map_(pa.string(), pa.string())
    )
    pq.write_table(pa.table({"text": invalid, "metadata": twice}), tmp_path / "a.parquet")

    first, bad, map_twice = read(open_source(tmp_path / "a.parquet"))

    assert first == Row(1, "row 1", {"text": "one", "metadata": {"a": "1"}})
    assert bad == BadRow(2, "row 2", "holds a text that is not UTF-8")
    assert map_twice == BadRow(3, "row 3", "holds a map with the same key twice")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_of_columns_without_a_byte_is_empty(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SourceEmpty):
        read(open_source(write(tmp_path / f"a.{kind}", "")))


# --- a folder --------------------------------------------------------------------------------


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


def test_a_file_beyond_all_measure_is_not_even_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.documents.reading.MAX_FILE_BYTES", 10)
    write(tmp_path / "a.txt", "x" * 11)

    [bad] = read(open_source(tmp_path))

    assert isinstance(bad, BadRow)
    assert "has 11 bytes; a document may have 10" in bad.fault


# --- SQL -------------------------------------------------------------------------------------


@pytest.fixture
def documents(tmp_path: Path) -> str:
    with sqlite3.connect(tmp_path / "documents.db") as database:
        database.execute("CREATE TABLE documents (id INTEGER, body TEXT, flag BOOLEAN)")
        database.executemany("INSERT INTO documents VALUES (?, ?, 1)", [(7, "one"), (8, None)])
    database.close()
    return f"sqlite:///{tmp_path}/documents.db"


def test_the_columns_of_a_query_are_fields(documents: str) -> None:
    query = 'SELECT id AS custom_id, body AS text, id AS "metadata.number" FROM documents'

    assert read(SqlSource(documents, query)) == [
        Row(1, "row 1", {"custom_id": "7", "text": "one", "metadata.number": "7"}),
        Row(2, "row 2", {"custom_id": "8", "metadata.number": "8"}),
    ]
    assert columns_of(SqlSource(documents, query)) == ["custom_id", "text", "metadata.number"]


@pytest.mark.parametrize(
    ("url", "query", "sentence"),
    [
        ("", "SELECT absent FROM documents", "no such column: absent"),
        ("", "DELETE FROM documents", "returns no rows"),
        ("sqlite:////nowhere/at/all.db", "SELECT 1", "there is no database file"),
        ("nonsense", "SELECT 1", "cannot be read; it looks like"),
        ("klingon://host/name", "SELECT 1", "knows no database"),
    ],
)
def test_a_query_that_cannot_be_read_is_refused_with_a_sentence(
    documents: str, url: str, query: str, sentence: str
) -> None:
    with pytest.raises(SourceUnusable, match=sentence):
        read(SqlSource(url or documents, query))


def test_a_password_is_never_shown() -> None:
    source = SqlSource("postgresql://me:secret@127.0.0.1:1/name", "SELECT 1")

    with pytest.raises(SourceUnusable) as failed:
        read(source)

    assert "secret" not in str(failed.value)
    assert "***" in str(failed.value)


def test_a_key_of_any_type_is_a_text() -> None:
    from cli.ingest.source import typed_fields

    key = UUID(int=5)

    assert typed_fields({"custom_id": key, "metadata.on": True, "seed": 5}) == {
        "custom_id": str(key),
        "metadata.on": "true",
        "seed": 5,
    }


# --- which is which --------------------------------------------------------------------------


def test_a_text_is_taken_for_a_source_only_when_that_is_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "reports.jsonl", "{}")
    write(tmp_path / "notes.txt", "x")
    write(tmp_path / "gate", "x")
    (tmp_path / "harbour").mkdir()

    for text in ("reports.jsonl", "harbour/", "notes.txt", "missing.jsonl", "./gate"):
        assert looks_like_source(text)
    for text in (
        "",
        "harbour",
        "gate",
        "missing.txt",
        "and/or",
        "a tale.csv",
        "a\x00b",
        "x" * 9999,
    ):
        assert not looks_like_source(text)


def test_an_unknown_kind_of_file_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SourceUnusable, match=r"\.jsonl, \.ndjson, \.csv"):
        open_source(write(tmp_path / "a.doc", "x"))
    with pytest.raises(SourceUnusable, match=r"`tidemill submit TASK - < .*notes\.log`"):
        open_source(write(tmp_path / "notes.log", "x"))
    with pytest.raises(SourceUnusable, match="there is no file or folder"):
        open_source(tmp_path / "missing.jsonl")
