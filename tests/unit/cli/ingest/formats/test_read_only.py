"""A source's query is checked before it is executed; no query can write."""

import sqlite3
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cli.errors import SourceUnusable
from cli.ingest import BadRow, Row
from cli.ingest.formats.sql import ROWS_AT_ONCE, SqlSource
from tests.services.servers import PostgresServer

SCHEMA = "CREATE TABLE documents (id INTEGER PRIMARY KEY, body TEXT)"
ROWS = [(1, "one"), (2, "two")]


def read(url: str, query: str) -> list[Row | BadRow]:
    return list(SqlSource(url, query).rows(lambda columns: None))


def refused(url: str, query: str) -> str:
    with pytest.raises(SourceUnusable) as failed:
        read(url, query)
    return str(failed.value)


# --- on both ---------------------------------------------------------------------------------


@pytest.fixture
def documents(database_url: str) -> Iterator[str]:
    """The URL of a database with two documents; checks at the end that they still exist."""
    run(database_url, SCHEMA, "INSERT INTO documents VALUES (1, 'one'), (2, 'two')")
    yield database_url
    assert contents(database_url) == ROWS


def run(url: str, *statements: str) -> None:
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()
        return
    with psycopg.connect(url, autocommit=True) as server:
        for statement in statements:
            server.execute(statement.encode())


def contents(url: str) -> list[tuple[int, str]]:
    query = "SELECT id, body FROM documents ORDER BY id"
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        try:
            return list(connection.execute(query))
        finally:
            connection.close()
    with psycopg.connect(url) as server:
        return server.execute(query).fetchall()


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE documents",
        "DELETE FROM documents",
        "DELETE FROM documents RETURNING id AS custom_id, body AS text",
        "INSERT INTO documents VALUES (3, 'three') RETURNING body AS text",
        "UPDATE documents SET body = 'x' RETURNING body AS text",
        "CREATE TABLE documents_2 AS SELECT * FROM documents",
        "ALTER TABLE documents RENAME TO gone",
        "WITH x AS (SELECT 1) DELETE FROM documents RETURNING body AS text",
        "WITH x AS (DELETE FROM documents RETURNING body) SELECT body AS text FROM x",
        "WITH x AS (INSERT INTO documents VALUES (9, 'x') RETURNING body) SELECT body FROM x",
        "SELECT 1; DROP TABLE documents",
        "SELECT body AS text FROM documents; DELETE FROM documents; SELECT 1",
        "SELECT 1; COMMIT; DROP TABLE documents",
        "COMMIT; DROP TABLE documents",
        "-- a SELECT\nDROP TABLE documents",
        "/* SELECT */ DROP TABLE documents",
        "(DELETE FROM documents)",
        "BEGIN",
        "",
    ],
)
def test_a_query_that_is_no_reading_is_refused_and_does_nothing(documents: str, query: str) -> None:
    assert "query" in refused(documents, query)


def test_a_query_that_only_reads_is_run(documents: str) -> None:
    queries = [
        "SELECT body AS text FROM documents ORDER BY id",
        "  -- in order\n/* of ids */ (SELECT body AS text FROM documents ORDER BY id)",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2) "
        "SELECT body AS text FROM documents JOIN n ON n.i = documents.id ORDER BY i",
        "SELECT body AS text FROM documents WHERE body <> '10 % of :all' ORDER BY id;",
    ]
    if documents.startswith("sqlite"):
        queries[1] = queries[1].replace("(SELECT", "SELECT").replace("id)", "id")

    for query in queries:
        assert [row.fields for row in read(documents, query) if isinstance(row, Row)] == [
            {"text": "one"},
            {"text": "two"},
        ]


def test_rows_are_streamed(documents: str) -> None:
    """Of sixty megabytes only a few rows are in memory at once."""
    many = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000) "
        + ("SELECT i AS custom_id, printf('%010000d', i) AS text FROM n")
        if documents.startswith("sqlite")
        else "SELECT i AS custom_id, lpad(i::text, 10000, '0') AS text "
        "FROM generate_series(1, 6000) AS n(i)"
    )
    tracemalloc.start()
    try:
        num_rows = sum(1 for _ in SqlSource(documents, many).rows(lambda columns: None))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert num_rows == 6000
    assert peak_bytes < 5 * ROWS_AT_ONCE * 10_000


# --- PostgreSQL ------------------------------------------------------------------------------


@pytest.fixture
def server(postgres: PostgresServer) -> Iterator[str]:
    """A database with a table, a sequence, a large object and functions that write."""
    url = postgres.new_database()
    run(
        url,
        SCHEMA,
        "INSERT INTO documents VALUES (1, 'one'), (2, 'two')",
        "CREATE SEQUENCE numbers",
        "SELECT lo_create(4711)",
        """
        CREATE FUNCTION write(statement text) RETURNS text LANGUAGE plpgsql AS
        $$ BEGIN EXECUTE statement; RETURN 'written'; END $$
        """,
        "CREATE PROCEDURE end_it() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$",
    )
    yield url
    assert contents(url) == ROWS
    with psycopg.connect(url) as connection:
        [(last, called)] = connection.execute("SELECT last_value, is_called FROM numbers")
        assert (last, called) == (1, False)
        [(writable,)] = connection.execute("SHOW default_transaction_read_only")
        assert writable == "off", "nothing is left behind"
    run(url, "SELECT lo_unlink(4711)")
    postgres.take_back(url)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT write('INSERT INTO documents VALUES (3, ''three'')') AS text",
        "SELECT write('DROP TABLE documents') AS text",
        "SELECT write('CREATE TABLE more ()') AS text",
        "SELECT write('COMMIT') AS text",
        "SELECT write('CALL end_it()') AS text",
        "SELECT write('SET TRANSACTION READ WRITE') AS text",
        "SELECT set_config('transaction_read_only', 'off', true) AS text",
        "SELECT set_config('transaction_read_only', 'off', false) AS text, "
        "write('DELETE FROM documents')",
        "SELECT nextval('numbers')::text AS text",
        "SELECT setval('numbers', 50)::text AS text",
        "SELECT body AS text FROM documents FOR UPDATE",
        "SELECT body AS text INTO more FROM documents",
        "SELECT query_to_xml('DELETE FROM documents RETURNING 1', true, true, '')::text AS text",
        "EXPLAIN ANALYZE DELETE FROM documents",
        "COPY documents TO PROGRAM 'cat'",
        "COPY documents FROM PROGRAM 'echo 3'",
        "CALL end_it()",
        "DO $$ BEGIN DELETE FROM documents; END $$",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
        "WITH x AS (UPDATE documents SET body = 'x' RETURNING *) TABLE x",
        "SELECT 1 AS text; END; DELETE FROM documents",
        "SELECT 1 AS text; ROLLBACK; BEGIN; DELETE FROM documents; COMMIT",
        "TABLE documents; DELETE FROM documents",
        "SELECT $a$ ; $a$ AS text; DROP TABLE documents",
    ],
)
def test_postgresql_writes_nothing_however_it_is_hidden(server: str, query: str) -> None:
    refused(server, query)


def test_any_driver_of_postgresql_is_read_only(server: str) -> None:
    for driver in ("psycopg", "psycopg2", "asyncpg"):
        url = server.replace("postgresql://", f"postgresql+{driver}://")
        assert len(read(url, "SELECT body AS text FROM documents")) == 2
        refused(url, "SELECT write('DELETE FROM documents') AS text")


def test_a_limit_of_time_is_taken_from_the_url(server: str) -> None:
    url = server + ("&" if "?" in server else "?") + "options=-c%20statement_timeout%3D10min"

    query = "SELECT current_setting('statement_timeout') AS text"
    assert read(url, query) == [Row(1, "row 1", {"text": "10min"})]


def test_a_value_of_a_document_is_in_no_error(server: str) -> None:
    run(server, "CREATE TABLE secrets AS SELECT 'a secret' AS body")

    assert "a secret" not in refused(server, "SELECT body::integer AS text FROM secrets")


# --- SQLite ----------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "100% sure? #1.db"
    run(f"sqlite:///{path}", SCHEMA, "INSERT INTO documents VALUES (1, 'one'), (2, 'two')")
    before = path.read_bytes()
    yield path
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "query",
    [
        "ATTACH '{other}' AS other",
        "VACUUM INTO '{other}'",
        "VACUUM",
        "REINDEX",
        "ANALYZE",
        "PRAGMA writable_schema = ON",
        "PRAGMA journal_mode = WAL",
        "PRAGMA user_version = 5",
        "PRAGMA query_only = OFF",
        "CREATE TEMP TABLE x AS SELECT 1",
        "CREATE TRIGGER t AFTER INSERT ON documents BEGIN DELETE FROM documents; END",
        "SELECT load_extension('{other}') AS text",
        "SELECT 1 AS text; ATTACH '{other}' AS other",
        "SELECT 1 AS text; PRAGMA query_only = OFF; DROP TABLE documents",
        "WITH x AS (SELECT 1) INSERT INTO documents SELECT 3, 'three' RETURNING body AS text",
        "WITH x AS (SELECT 1) REPLACE INTO documents SELECT 1, 'three' RETURNING body AS text",
        "SELECT * FROM pragma_journal_mode('wal')",
        "WITH x AS (SELECT 1) UPDATE sqlite_master SET sql = 'x' RETURNING sql AS text",
    ],
)
def test_sqlite_writes_nothing_however_it_is_hidden(file: Path, query: str) -> None:
    other = file.parent / "other.db"

    refused(f"sqlite:///{file}", query.format(other=other))

    assert [each.name for each in file.parent.iterdir()] == [file.name]


def test_sqlite_reads_views_and_full_text_and_a_log_that_is_not_merged(tmp_path: Path) -> None:
    path = tmp_path / "documents.db"
    writer = sqlite3.connect(path, isolation_level=None)
    for statement in (
        "PRAGMA journal_mode = WAL",
        SCHEMA,
        "INSERT INTO documents VALUES (1, 'one'), (2, 'two')",
        "CREATE VIEW bodies AS SELECT body AS text FROM documents",
        "CREATE VIRTUAL TABLE found USING fts5(text)",
        "INSERT INTO found SELECT body FROM documents",
        "CREATE VIRTUAL TABLE found_before USING fts4(text)",
        "INSERT INTO found_before SELECT body FROM documents",
    ):
        writer.execute(statement)

    for query in (
        "SELECT text FROM bodies WHERE text = 'two'",
        "SELECT text FROM found WHERE found MATCH 'two'",
        "SELECT text FROM found_before WHERE found_before MATCH 'two'",
        "SELECT value AS text FROM json_each('[\"two\"]')",
    ):
        assert read(f"sqlite:///{path}", query) == [Row(1, "row 1", {"text": "two"})]
    writer.close()


@pytest.mark.parametrize("url", ["sqlite:///{folder}/none.db", "sqlite://", "sqlite:///:memory:"])
def test_a_database_file_that_is_missing_is_not_made(tmp_path: Path, url: str) -> None:
    assert "there is no database file" in refused(url.format(folder=tmp_path), "SELECT 1")

    assert not list(tmp_path.iterdir())


def test_text_that_is_no_utf8_costs_its_own_row(tmp_path: Path) -> None:
    path = tmp_path / "documents.db"
    run(f"sqlite:///{path}", SCHEMA, "INSERT INTO documents VALUES (1, CAST(x'63e9' AS TEXT))")

    assert read(f"sqlite:///{path}", "SELECT body AS text FROM documents") == [
        Row(1, "row 1", {"text": "c\udce9"})
    ]


# --- the others ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["mysql", "mariadb", "oracle", "mssql"])
def test_a_database_that_cannot_be_held_to_reading_is_refused_by_name(backend: str) -> None:
    url = f"{backend}://reader:secret@127.0.0.1:1/documents"
    [sentence] = {refused(url, "SELECT body AS text FROM documents")}

    assert backend in sentence
    assert "`read_only_user = true` in [source]" in sentence
    with pytest.raises(SourceUnusable, match="the driver for"):  # accepted, but not installed
        list(SqlSource(url, "SELECT 1", read_only_user=True).rows(lambda columns: None))


@pytest.mark.parametrize("url", ["postgresql://u:secret@host:notaport/db", "redis//:secret@host"])
def test_a_url_that_cannot_be_read_is_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(SourceUnusable, match="cannot be read") as refused:
        SqlSource(url, "SELECT 1")
    assert "secret" not in str(refused.value)
