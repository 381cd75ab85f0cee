"""Instants are kept in UTC, and compared with the database's own clock."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import literal, select
from sqlalchemy.exc import StatementError

from db.clock import Instant, now, seconds_from_now
from db.session import Database
from tests.samples.jobs import insert_job, job, set_columns

ZONES = st.integers(-12 * 60, 14 * 60).map(lambda each: timezone(timedelta(minutes=each)))


@given(instant=st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1), timezones=ZONES))
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the database is only read from
)
def test_an_instant_comes_back_as_it_went(database: Database, instant: datetime) -> None:
    with database.read() as session:
        back = session.execute(select(literal(instant, Instant()))).scalar_one()
    assert back == instant
    assert back.tzinfo is UTC


def test_an_instant_in_a_row_comes_back_as_it_went(database: Database) -> None:
    instant = datetime(2026, 11, 23, 1, 2, 3, 456789, timezone(timedelta(hours=-7)))
    job_id = insert_job(database, not_before=instant)
    assert job(database, job_id).not_before == instant
    assert job(database, job_id).not_before.tzinfo is UTC  # type: ignore[union-attr]


def test_a_time_without_a_zone_is_refused(database: Database) -> None:
    with pytest.raises(StatementError, match="has no time zone"):
        insert_job(database, not_before=datetime(2026, 11, 23))


def test_the_clock_is_the_database_s_own(database: Database) -> None:
    with database.read() as session:
        told = session.execute(select(now(), seconds_from_now(90), seconds_from_now(-90.5))).one()
    before, after = datetime.now(UTC) - timedelta(minutes=5), datetime.now(UTC) + timedelta(hours=1)
    assert before < told[0] < after
    assert told[1] - told[0] == timedelta(seconds=90)
    assert told[0] - told[2] == timedelta(seconds=90.5)


def test_the_clock_goes_on_within_a_transaction(database: Database) -> None:
    with database.read() as session:
        first = session.execute(select(now())).scalar_one()
        while (later := session.execute(select(now())).scalar_one()) == first:
            pass
    assert later > first


def test_what_python_wrote_and_what_the_clock_wrote_compare_as_instants(
    database: Database,
) -> None:
    """On SQLite both are texts, which compare correctly only in the same format."""
    instant = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
    job_id = insert_job(database, not_before=instant)
    set_columns(database, [job_id], deadline=seconds_from_now(0))
    with database.read() as session:
        written = session.connection().exec_driver_sql("SELECT not_before, deadline FROM jobs")
        one, other = written.one()
    assert type(one) is type(other)
    if database.dialect == "sqlite":
        assert len(one) == len(other) == len("2026-11-23 12:00:00.000000")
