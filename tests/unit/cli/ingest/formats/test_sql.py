import sqlite3
from pathlib import Path
from uuid import UUID

import pytest

from cli.errors import SourceUnusable
from cli.ingest import Row
from cli.ingest.formats.sql import SqlSource
from tests.unit.cli.ingest.formats.rows import columns_of, read


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
