"""A query against any database that SQLAlchemy speaks to: its columns are the fields."""

from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from cli.errors import SourceUnusable
from cli.ingest.source import CheckColumns, Row, typed_fields

ROWS_AT_ONCE = 1000


class SqlSource:
    """A query, read through a server-side cursor where the database has one."""

    def __init__(self, url: str, query: str) -> None:
        try:
            self._url = make_url(url)
        except ArgumentError:
            raise SourceUnusable(
                "the source's url cannot be read; it looks like "
                "postgresql://user:password@host/name or sqlite:////path/to/file.db"
            ) from None
        self._query = query
        self.name = f"the query on {self._url.render_as_string(hide_password=True)}"

    @property
    def fraction(self) -> float | None:
        return None

    def rows(self, check_columns: CheckColumns) -> Iterator[Row]:
        url = self._url
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_file():
            # SQLite would make an empty one.
            raise SourceUnusable(f"there is no database file {url.database}")
        try:
            engine = create_engine(url, hide_parameters=True)
        except NoSuchModuleError:
            raise SourceUnusable(f"SQLAlchemy knows no database {url.drivername!r}") from None
        except ModuleNotFoundError as error:
            raise SourceUnusable(
                f"the driver for {url.drivername} is not installed: no module {error.name!r}"
            ) from error
        try:
            with engine.connect().execution_options(yield_per=ROWS_AT_ONCE) as connection:
                result = connection.execute(text(self._query))
                if not result.returns_rows:
                    raise SourceUnusable(f"{self.name} returns no rows; it must be a SELECT")
                check_columns(list(result.keys()))
                for position, row in enumerate(result.mappings(), start=1):
                    yield Row(position, f"row {position}", typed_fields(dict(row)))
        except DBAPIError as error:
            reason = str(error.orig).strip().splitlines()[0]
            raise SourceUnusable(f"{self.name} failed: {reason}") from error
        except SQLAlchemyError as error:
            reason = str(error).strip().splitlines()[0]
            raise SourceUnusable(f"{self.name} failed: {reason}") from error
        finally:
            engine.dispose()
