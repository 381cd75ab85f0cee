"""Measure the database time of `tidemill quality`.

    python -m benchmarks.quality [--jobs 1000000] [--rounds 5]

The jobs of one model and task ended in 29 nights of two hours, equally many in each night. The last
night is compared with the 28 nights before. The first time is that of the statements; the second
includes reading their rows and the arithmetic.
"""

import argparse
import statistics
import time
from datetime import UTC, datetime, timedelta

from sqlalchemy import event, insert, text

from benchmarks.pipeline import DATABASES, RAW, Road
from db import schema
from db.models import Job, Result
from db.queries.inserts import table
from db.reading.quality import find_drift
from db.session import Database
from tests.samples.jobs import job_row

NIGHTS = 29
NIGHT_SECONDS = 7200
FLUSH = 64  # jobs that end at one instant
CHUNK = 50_000
UNTIL = datetime(2026, 6, 29, 12, tzinfo=UTC)
FIRST = UNTIL - timedelta(days=NIGHTS - 1, hours=10)
# Like UUIDv7: the time in the first 48 bits, the others random except for the version.
IDS = {
    "sqlite": "printf('%012x', 1700000000000 + n) || '7' || "
    "substr(lower(hex(randomblob(10))), 1, 19)",
    "postgresql": "CAST(lpad(to_hex(1700000000000 + n), 12, '0') || '7' || "
    "right(replace(gen_random_uuid()::text, '-', ''), 19) AS uuid)",
}
INSTANTS = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', :first, ({seconds}) || ' seconds') || '000'",
    "postgresql": "CAST(:first AS timestamptz) + make_interval(secs => {seconds})",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with Road.built() as road:
        for name in DATABASES:
            database = Database(road.environment(name)["TIDEMILL_DATABASE_URL"])
            schema.migrate(database)
            add_ended(database, arguments.jobs)
            report(name, database, arguments.rounds)
            database.close()


def report(name: str, database: Database, num_rounds: int) -> None:
    spent: list[float] = []
    begun: list[float] = []
    event.listen(
        database.engine, "before_cursor_execute", lambda *_: begun.append(time.perf_counter())
    )
    event.listen(
        database.engine,
        "after_cursor_execute",
        lambda *_: spent.append(time.perf_counter() - begun.pop()),
    )
    statements, whole, num = [], [], 0
    for _ in range(num_rounds):
        spent.clear()
        start = time.perf_counter()
        with database.read() as session:
            drifts = find_drift(
                session, period=timedelta(days=1), reference=timedelta(days=28), until=UNTIL
            )
        whole.append(time.perf_counter() - start)
        statements.append(sum(spent))
        num = len(spent)
        assert {each.verdict for each in drifts} == {"stable"}
    print(
        f"{name:<11} {num} statements {statistics.median(statements):.3f} s, "
        f"with reading and arithmetic {statistics.median(whole):.3f} s, n = {num_rounds}",
        flush=True,
    )


def add_ended(database: Database, num: int) -> None:
    first = {"output": "x", "alternatives": [], "finish_reason": "stop", "prompt_tokens": 1}
    row = job_row(model="measured", state="succeeded", finished_at=FIRST, created_at=FIRST)
    with database.write() as session:
        session.execute(insert(table(Job)), [row])
        result = {**first, "job_id": row["id"], "completion_tokens": 20, "provenance": {}}
        session.execute(insert(table(Result)), [result])
    jobs = [each.name for each in Job.__table__.columns if each.name not in ("id", "finished_at")]
    results = [
        each.name
        for each in Result.__table__.columns
        if each.name not in ("job_id", "completion_tokens")
    ]
    of_night = num // NIGHTS
    seconds = (
        f"86400 * (n / {of_night}) + {FLUSH} * ((n % {of_night}) / {FLUSH})"
        f" * {NIGHT_SECONDS / of_night}"
    )
    instant = INSTANTS[database.dialect].format(seconds=seconds)
    with database.write() as session:
        session.execute(text("CREATE TEMPORARY TABLE numbered (n bigint, id char(36))"))
        for start in range(0, of_night * NIGHTS, CHUNK):
            numbers = (
                f"WITH RECURSIVE numbers(n) AS (SELECT {start} UNION ALL SELECT n + 1 FROM numbers"
                f" WHERE n + 1 < {min(start + CHUNK, of_night * NIGHTS)})"
            )
            session.execute(
                text(
                    f"INSERT INTO numbered {numbers} SELECT n, {IDS[database.dialect]} FROM numbers"
                )
            )
        as_id = "CAST(numbered.id AS uuid)" if database.dialect == "postgresql" else "numbered.id"
        moment = FIRST.replace(tzinfo=None).isoformat(" ") + (
            "" if database.dialect == "sqlite" else "+00"
        )
        session.execute(
            text(
                f"INSERT INTO jobs (id, finished_at, {', '.join(jobs)}) SELECT {as_id}, {instant}, "
                f"{', '.join(f'jobs.{each}' for each in jobs)} FROM numbered CROSS JOIN jobs"
            ).bindparams(first=moment)
        )
        session.execute(
            text(
                f"INSERT INTO results (job_id, completion_tokens, {', '.join(results)}) SELECT "
                f"{as_id}, 20 + n % 50, {', '.join(results)} FROM numbered CROSS JOIN results"
            )
        )
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")


if __name__ == "__main__":
    main()
