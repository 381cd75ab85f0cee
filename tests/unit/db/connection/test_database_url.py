"""The database's URL: what it names, and the sentence for one that cannot be used."""

import os
from pathlib import Path

import pytest

from db.connection.address import database_address
from db.connection.database_url import file_url, read_database_url
from db.errors import DatabaseError
from db.schema import migrate
from db.session import Database

ODD_NAMES = (
    "with space",
    "%41",
    "100%",
    "%(here)s",
    "a#b",
    "a?b",
    "a?b=c&d=e",
    "it's",
    'say "so"',
    "line\nbreak",
    "tab\there",
    "ünïcödé-日本",
    "-dash",
    "c:olon",
    "me@host",
    "back\\slash",
    "back\\x41slash",
    "$HOME",
    "semi;colon",
    "[brackets]",
    "trailing ",
    ":memory:",
    "file:x",
    "+plus",
    "x" * 200,
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_database_is_made_in_its_folder_whatever_that_is_called(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "top" / name
    folder.mkdir(parents=True)
    url = file_url(folder / "tidemill.db")
    for database in (Database(url), Database(url.render_as_string(hide_password=False))):
        migrate(database)
        database.close()
        assert (folder / "tidemill.db").is_file()
        assert list((tmp_path / "top").iterdir()) == [folder], "and nothing outside it"
    assert database_address({"TIDEMILL_DATA_DIR": str(folder)}, tmp_path) == url


def test_a_path_that_no_url_can_hold_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"xff.* is not UTF-8"):
        file_url(tmp_path / os.fsdecode(b"\xff") / "tidemill.db")


def test_a_relative_path_is_relative_to_where_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Database("sqlite:///a/b.db").file == tmp_path / "a" / "b.db"
    assert "sqlite:////" in Database("sqlite:///b.db").url.render_as_string()


def test_a_link_leads_to_the_same_database(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    linked = Database(file_url(tmp_path / "link" / "x.db"))
    migrate(linked)
    linked.close()
    assert (tmp_path / "real" / "x.db").is_file()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        (" postgresql://u:hidden@h/n", "quotes or spaces around it"),
        ("postgresql://u:hidden@h/n\n", "quotes or spaces around it"),
        ("'postgresql://u:hidden@h/n'", "quotes or spaces around it"),
        ('"sqlite:////tmp/x.db"', "quotes or spaces around it"),
        ("postgresql://u:hid\nden@h/n", "cannot be printed"),
        ("postgresql:u:hidden@h/n", "no scheme"),
        ("/data/tidemill.db", "a file is written sqlite:////data/tidemill.db"),
        ("mysql://u:hidden@h/n", "Tidemill keeps its jobs in PostgreSQL or SQLite"),
        ("postgresql+psycopg2://u:hidden@h/n", "the driver 'psycopg2'; leave it out"),
        ("sqlite+aiosqlite:////tmp/x.db", "the driver 'aiosqlite'; leave it out"),
        ("postgresql://u:hidden@h:notaport/n", "no usable port"),
        ("postgresql://u:hidden@h:0/n", "no usable port"),
        ("postgresql://u:hidden@h:99999/n", "no usable port"),
        ("postgresql://u:hidden", "no usable port"),
        ("postgresql://u:hid@den@h/n", "is ambiguous"),
        ("postgresql://u:hid/den@h/n", "no usable port|is ambiguous"),
        ("postgresql://u:hid#den@h/n", "is ambiguous"),
        ("postgresql://", "neither host nor database"),
        ("postgresql://:hidden@h/n", "a password and no user"),
        ("sqlite://tmp/x.db", "names no file"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////tmp/a?b/tidemill.db", "written %3F"),
        ("host=h password=hidden", "no scheme"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_a_sentence(url: str, says: str) -> None:
    with pytest.raises(DatabaseError, match=says) as raised:
        Database(url)
    assert "hid" not in str(raised.value).replace("hidden by", "")


@pytest.mark.parametrize(
    ("url", "drivername", "host", "port"),
    [
        ("postgres://u:p@h/n", "postgresql", "h", None),
        ("postgresql://u:p%40w@[::1]:5433/n", "postgresql", "::1", 5433),
        ("postgresql+psycopg://h/n?sslmode=require", "postgresql+psycopg", "h", None),
        ("postgresql:///n?host=/tmp/sock", "postgresql", None, None),
        ("postgresql://u:@/n?host=/tmp/sock", "postgresql", None, None),
    ],
)
def test_a_url_that_can_be_used_is_read(
    url: str, drivername: str, host: str | None, port: int | None
) -> None:
    found = read_database_url(url)
    assert (found.drivername, found.host, found.port) == (drivername, host, port)
