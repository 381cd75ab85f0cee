"""Files of terms and their translations."""

from pathlib import Path

import pytest

from cli.errors import SourceUnusable
from cli.ingest.glossary_file import read_glossary_file


@pytest.mark.parametrize(
    ("name", "text", "entries"),
    [
        ("a.csv", "harbour,port\nTidemill,\n", [["harbour", "port"], ["Tidemill", None]]),
        ("a.csv", "term,translation\nharbour,port\n", [["harbour", "port"]]),
        ("a.csv", "Source;Target\r\nharbour;port\r\n\r\n", [["harbour", "port"]]),
        ("a.tsv", "\ufeffharbour\tport, vieux\n", [["harbour", "port, vieux"]]),
        ("a.csv", '"sea, salt",sel\n', [["sea, salt", "sel"]]),
        ("a.csv", "Tidemill\nNell\n", [["Tidemill", None], ["Nell", None]]),
        ("a.csv", "term\nTidemill\n", [["Tidemill", None]]),
        ("a.csv", "bank,banque\nbank,rive\n", [["bank", "banque"], ["bank", "rive"]]),
        ("a.csv", "", []),
        ("a.json", '{"harbour": "port", "x": null}', [["harbour", "port"], ["x", None]]),
        ("a.JSON", '{"bank": "banque", "bank": "rive"}', [["bank", "banque"], ["bank", "rive"]]),
        ("a.json", '[["harbour", "port"]]', [["harbour", "port"]]),
    ],
)
def test_a_glossary_file_is_read_as_pairs(
    tmp_path: Path, name: str, text: str, entries: list[list[str]]
) -> None:
    (tmp_path / name).write_text(text, newline="")
    assert read_glossary_file(tmp_path / name) == entries


def test_a_glossary_may_be_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("café;Kaffee\n".encode("cp1252"))
    assert read_glossary_file(tmp_path / "a.csv", "windows-1252") == [["café", "Kaffee"]]


@pytest.mark.parametrize(
    ("name", "data", "fault"),
    [
        ("a.csv", b"a,b,c\n", "line 1 has 3 cells"),
        ("a.csv", b"a,b\n,c\n", "line 2 has no term"),
        ("a.csv", b"caf\xe9", "is not UTF-8 text"),
        ("a.json", b"{", "is not valid JSON"),
        ("a.json", b"3", "must be a JSON object"),
        ("none.csv", None, "cannot be read"),
    ],
)
def test_a_glossary_file_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, data: bytes | None, fault: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceUnusable, match=fault):
        read_glossary_file(tmp_path / name)
