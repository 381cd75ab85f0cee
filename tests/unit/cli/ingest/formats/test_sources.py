import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli.errors import SourceEmpty, SourceUnusable
from cli.ingest import BadRow, Row, looks_like_source, open_source
from cli.ingest.formats.jsonl import parse_line
from tests.unit.cli.ingest.formats.rows import columns_of, read, write

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
def test_the_delimiter_of_a_csv_file_is_detected(tmp_path: Path, delimiter: str) -> None:
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
def test_csv_is_read_by_its_byte_order_mark_or_in_the_named_encoding(
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


def test_json_lines_are_read_in_the_named_encoding(tmp_path: Path) -> None:
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
