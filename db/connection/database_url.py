"""The database URL: parsed once; errors show no password."""

import os
import re
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from db.connection.url_redaction import masked
from db.errors import DatabaseUrlInvalid

LOOKS_LIKE = "it looks like postgresql://user:password@host/name or sqlite:////path/to/file.db"
ENCODE = "write / ? # @ : and % of a name or password as %2F %3F %23 %40 %3A and %25"
DRIVERS = {
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "postgresql+psycopg": "postgresql+psycopg",
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
}


def read_database_url(text: str) -> URL:
    """Parse the URL and make a file's path absolute; raises DatabaseUrlInvalid."""
    _refuse_outside(text)
    scheme, separator, rest = text.partition("://")
    if not separator:
        hint = f"; a file is written {_file_url(text)}" if text.startswith(("/", ".", "~")) else ""
        raise DatabaseUrlInvalid(
            f"the database URL {masked(text)} has no scheme, so it cannot be read; "
            f"{LOOKS_LIKE}{hint}"
        )
    drivername = DRIVERS.get(scheme.lower())
    if drivername is None:
        kind, plus, driver = scheme.partition("+")
        if plus and kind.lower() in DRIVERS:
            raise DatabaseUrlInvalid(
                f"the database URL names the driver {driver!r}; leave it out: {kind}://..."
            )
        raise DatabaseUrlInvalid(
            f"the database is {kind!r}; Tidemill keeps its jobs in PostgreSQL or SQLite"
        )
    if drivername == "sqlite":
        return _sqlite(text, rest)
    return _postgresql(text, drivername, rest)


def file_url(path: Path) -> URL:
    """The URL of an SQLite file; raises DatabaseUrlInvalid if no URL can name it.

    A path is never pasted into a URL, in which some of its characters have a meaning.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DatabaseUrlInvalid(
            f"the path {os.fsencode(path)!r} is not UTF-8, which settings and logs cannot hold; "
            "give the folder another name"
        ) from None
    return URL.create("sqlite", database=str(path))


def _refuse_outside(text: str) -> None:
    if not text.strip():
        raise DatabaseUrlInvalid(f"the database URL is empty, so it cannot be read; {LOOKS_LIKE}")
    if text != text.strip() or text[0] in "\"'" or text[-1] in "\"'":
        raise DatabaseUrlInvalid(
            f"the database URL {masked(text)} has quotes or spaces around it; take them away"
        )
    if not all(c.isprintable() for c in text):
        raise DatabaseUrlInvalid(
            f"the database URL {masked(text)} has a character in it that cannot be printed; "
            "write it percent-encoded, a line break as %0A"
        )


def _sqlite(text: str, rest: str) -> URL:
    place, mark, _ = rest.partition("?")
    if mark:
        raise DatabaseUrlInvalid(
            f"the database URL {masked(text)} has a `?` in it; SQLite takes no parameters here, "
            "and in a path it is written %3F"
        )
    if not place.startswith("/"):
        raise DatabaseUrlInvalid(
            f"the database URL {masked(text)} names no file: a relative path follows three "
            "slashes, sqlite:///tidemill.db, and an absolute one four, sqlite:////data/tidemill.db"
        )
    path = make_url(text).database
    if not path or path == ":memory:":
        raise DatabaseUrlInvalid(
            f"the database URL {masked(text)} names no file; a database in memory would end "
            "with each command"
        )
    # The path is resolved here: a child process that gets the URL may start in another folder.
    return URL.create("sqlite", database=os.path.abspath(path))


def _postgresql(text: str, drivername: str, rest: str) -> URL:
    before, _, query = rest.partition("?")
    authority, _, path = before.partition("/")
    if "@" in path or "#" in before or "@" in authority.rpartition("@")[0]:
        raise DatabaseUrlInvalid(f"the database URL {masked(text)} is ambiguous; {ENCODE}")
    host, port = _host_and_port(authority.rpartition("@")[2])
    if port and not (port.isdecimal() and 0 < int(port) < 2**16):
        raise DatabaseUrlInvalid(
            f"the database URL {masked(text)} has no usable port: it is a number from 1 to 65535, "
            f"after the host; {ENCODE}"
        )
    try:
        url = make_url(text)
    except (ArgumentError, SQLAlchemyError, ValueError):
        raise DatabaseUrlInvalid(
            f"the database URL {masked(text)} cannot be read; {LOOKS_LIKE}; {ENCODE}"
        ) from None
    if not (host or path or query):
        raise DatabaseUrlInvalid(
            f"the database URL {masked(text)} names neither host nor database; {LOOKS_LIKE}"
        )
    if (username := url.username) is not None and not username and url.password:
        raise DatabaseUrlInvalid(
            f"the database URL {masked(text)} has a password and no user; {LOOKS_LIKE}"
        )
    return url.set(drivername=drivername)


def _host_and_port(place: str) -> tuple[str, str]:
    if match := re.fullmatch(r"(\[[^\]]*\])(?::(.*))?", place):
        return match[1], match[2] or ""
    host, _, port = place.partition(":")
    return host, port


def _file_url(path: str) -> str:
    return "sqlite:///" + str(file_url(Path(os.path.abspath(path)))).partition(":///")[2]
