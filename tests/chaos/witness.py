"""A witness in the database: triggers that record every change of a job or result.

The triggers are independent of the tested code: they see what that code overwrites, deletes or does
twice. Times are of the database's clock.
"""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text

from db.session import Database

POSTGRESQL = """
CREATE TABLE witness (
    seq bigserial PRIMARY KEY,
    at double precision NOT NULL DEFAULT extract(epoch FROM clock_timestamp()),
    job_id uuid NOT NULL,
    what text NOT NULL,
    state_before text, state text,
    attempt_before integer, attempt integer,
    owner_before text, owner text
);
CREATE FUNCTION see_job() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO witness
        (job_id, what, state_before, state, attempt_before, attempt, owner_before, owner)
    VALUES (new.id, 'job', old.state, new.state, old.attempt, new.attempt, old.owner, new.owner);
    RETURN NULL;
END $$;
CREATE FUNCTION see_result() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO witness (job_id, what)
    VALUES (coalesce(new.job_id, old.job_id), 'result ' || lower(tg_op));
    RETURN NULL;
END $$;
CREATE TRIGGER see_job AFTER UPDATE ON jobs FOR EACH ROW
    WHEN (old.state <> new.state OR old.attempt <> new.attempt) EXECUTE FUNCTION see_job();
CREATE TRIGGER see_result AFTER INSERT OR UPDATE OR DELETE ON results
    FOR EACH ROW EXECUTE FUNCTION see_result();
"""

SQLITE = """
CREATE TABLE witness (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL DEFAULT ((julianday('now') - 2440587.5) * 86400.0),
    job_id TEXT NOT NULL,
    what TEXT NOT NULL,
    state_before TEXT, state TEXT,
    attempt_before INTEGER, attempt INTEGER,
    owner_before TEXT, owner TEXT
);
CREATE TRIGGER see_job AFTER UPDATE ON jobs
    WHEN old.state <> new.state OR old.attempt <> new.attempt
BEGIN
    INSERT INTO witness
        (job_id, what, state_before, state, attempt_before, attempt, owner_before, owner)
    VALUES (new.id, 'job', old.state, new.state, old.attempt, new.attempt, old.owner, new.owner);
END;
CREATE TRIGGER see_result_insert AFTER INSERT ON results
BEGIN INSERT INTO witness (job_id, what) VALUES (new.job_id, 'result insert'); END;
CREATE TRIGGER see_result_update AFTER UPDATE ON results
BEGIN INSERT INTO witness (job_id, what) VALUES (new.job_id, 'result update'); END;
CREATE TRIGGER see_result_delete AFTER DELETE ON results
BEGIN INSERT INTO witness (job_id, what) VALUES (old.job_id, 'result delete'); END;
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """One change of one row; the columns of jobs are None for a result."""

    at: float
    job_id: UUID
    what: str
    state_before: str | None
    state: str | None
    attempt_before: int | None
    attempt: int | None
    owner_before: str | None
    owner: str | None


def install(database: Database) -> None:
    raw = database.engine.raw_connection()
    try:
        if database.dialect == "sqlite":
            raw.driver_connection.executescript(SQLITE)  # type: ignore[union-attr]
        else:
            raw.cursor().execute(POSTGRESQL)
        raw.commit()
    finally:
        raw.close()


def testimony(database: Database) -> list[Seen]:
    """All recorded changes, in order."""
    columns = "at, job_id, what, state_before, state, attempt_before, attempt, owner_before, owner"
    with database.read() as session:
        rows = session.execute(text(f"SELECT {columns} FROM witness ORDER BY seq")).all()
    return [Seen(row[0], UUID(str(row[1])), *row[2:]) for row in rows]
