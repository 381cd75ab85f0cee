"""A clock for a database that stands still until a test lets time pass."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import event, text

from db.session import Database

START = datetime(2026, 1, 1, tzinfo=UTC)

# With the search path set, this is found before PostgreSQL's own function of that name.
POSTGRESQL = """
CREATE TABLE virtual_clock (at timestamptz NOT NULL);
INSERT INTO virtual_clock VALUES ('2026-01-01 00:00:00+00');
CREATE FUNCTION public.statement_timestamp() RETURNS timestamptz
    LANGUAGE sql STABLE AS 'SELECT at FROM public.virtual_clock';
"""


class VirtualClock:
    """Replaces the clock of `db.clock.now`; seconds count from its start."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.seconds = 0
        if database.dialect == "sqlite":
            # A function of so many arguments is preferred to SQLite's of any number.
            @event.listens_for(database.engine, "connect")
            def take_its_place(connection, _record) -> None:
                connection.create_function("strftime", 3, self._strftime)

        else:
            with database.write() as session:
                session.execute(text(POSTGRESQL))
                name = session.scalar(text("SELECT current_database()"))
                session.execute(
                    text(f'ALTER DATABASE "{name}" SET search_path = public, pg_catalog')
                )
        database.engine.dispose()  # new connections use this clock

    @property
    def now(self) -> datetime:
        return self.at(self.seconds)

    def at(self, seconds: int) -> datetime:
        return START + timedelta(seconds=seconds)

    def set(self, seconds: int) -> None:
        self.seconds = seconds
        if self._database.dialect == "postgresql":
            with self._database.write() as session:
                session.execute(text("UPDATE virtual_clock SET at = :at"), {"at": self.now})

    def _strftime(self, form: str, instant: str, shift: str) -> str:
        assert (form, instant) == ("%Y-%m-%d %H:%M:%f", "now")
        number, unit = shift.split()
        assert unit == "seconds"
        shifted = self.now + timedelta(seconds=float(number))
        return shifted.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
