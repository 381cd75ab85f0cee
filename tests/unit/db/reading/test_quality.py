"""Drift: two samples of one distribution are stable; a change of distribution is found."""

import random
import re
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event, insert, text

from db.models import Result
from db.reading import quality
from db.reading.quality import CHANGED, MIN_ROWS, SHIFTING, Drift, find_drift, stability_index
from db.session import Database
from tests.samples.jobs import insert_jobs, job_row


@pytest.mark.parametrize("size", [50, 200, 5000])
def test_samples_of_one_distribution_are_stable(size: int) -> None:
    draw = random.Random(size)
    indexes = [
        stability_index(
            [draw.lognormvariate(3, 1) for _ in range(5000)],
            [draw.lognormvariate(3, 1) for _ in range(size)],
        )
        for _ in range(50)
    ]
    assert max(indexes) < CHANGED
    assert sum(index > SHIFTING for index in indexes) <= 5


@pytest.mark.parametrize("size", [50, 5000])
def test_another_distribution_has_changed(size: int) -> None:
    draw = random.Random(size)
    reference = [draw.lognormvariate(3, 1) for _ in range(5000)]
    assert stability_index(reference, [draw.lognormvariate(4, 1) for _ in range(size)]) > CHANGED
    assert stability_index([0.0] * 500, [0.0] * 40 + [1.0] * 10) > CHANGED


def test_a_share_has_the_index_of_its_formula() -> None:
    # 10 % then, 30 % now: (0.3 - 0.1) ln(0.3 / 0.1) + (0.7 - 0.9) ln(0.7 / 0.9), less 2 / n
    reference, current = [1.0] * 1000 + [0.0] * 9000, [1.0] * 3000 + [0.0] * 7000
    assert stability_index(reference, current) == pytest.approx(
        0.2 * 1.0986 + 0.2 * 0.2513, abs=1e-3
    )


def test_a_constant_signal_is_stable() -> None:
    assert stability_index([7.0] * 100, [7.0] * 100) == 0.0


@pytest.mark.parametrize(
    ("reference", "current"),
    [
        ([256.0] * 500, [10.0] * 200),
        ([256.0] * 500, [300.0] * 200),
        ([256.0] * 475 + [10.0] * 25, [10.0] * 200),
        ([1.0] * 100, [0.0] * 100),
        ([1.0] * 95 + [0.0] * 5, [0.0] * 100),
        ([20.0] * 300 + [30.0] * 200, [10.0] * 120 + [30.0] * 80),
    ],
)
def test_a_signal_that_left_its_usual_value_has_changed(
    reference: list[float], current: list[float]
) -> None:
    """If nearly all of the reference has one value, lower values get a bin of their own: answers
    of 10 tokens are unlike answers of 256."""
    assert stability_index(reference, current) > CHANGED
    assert stability_index(reference, list(reference[:: len(reference) // 50])) < CHANGED


SUCCEEDED = {
    "output": "x",
    "alternatives": [],
    "finish_reason": "stop",
    "prompt_tokens": 1,
    "completion_tokens": 20,
    "provenance": {},
}


def finish(database: Database, num: int, days_ago: float, state: str, **result: object) -> None:
    """Insert jobs of one model that ended some days ago, with these signals in their results."""
    ids = insert_jobs(
        database,
        [
            job_row(
                state=state,
                model="m",
                task="summarize",
                finished_at=datetime.now(UTC) - timedelta(days=days_ago),
            )
            for _ in range(num)
        ],
    )
    if state == "succeeded":
        row = {**SUCCEEDED, **result}
        with database.write() as session:
            session.execute(insert(Result), [{"job_id": each, **row} for each in ids])


def test_a_signal_that_changed_overnight_is_found_and_the_others_are_stable(
    database: Database,
) -> None:
    finish(database, 80, 0.5, "succeeded", suspicions="repetition", repetition=0.8)
    finish(database, 120, 10, "succeeded", repetition=0.1)
    finish(database, MIN_ROWS - 1, 0.5, "failed")
    with database.read() as session:
        drifts = find_drift(session, period=timedelta(days=1), reference=timedelta(days=28))
    verdicts = {each.signal: each.verdict for each in drifts}
    assert verdicts == {
        "failed": "changed",
        "suspicious": "changed",
        "repetition": "changed",
        "cut_by_length": "stable",
        "wrong_language": "stable",
        "empty": "stable",
        "refused": "stable",
        "completion_tokens": "stable",
    }
    failed = next(each for each in drifts if each.signal == "failed")
    assert (failed.reference, failed.num_reference) == (0.0, 120)
    assert failed.current == pytest.approx(49 / 129)


def test_too_few_results_give_no_drift(database: Database) -> None:
    finish(database, MIN_ROWS - 1, 0.5, "succeeded")
    finish(database, 100, 10, "succeeded")
    with database.read() as session:
        drifts = find_drift(session, period=timedelta(days=1), reference=timedelta(days=28))
    assert drifts == []


NOON = datetime(2026, 6, 29, 12, tzinfo=UTC)
NIGHT_SECONDS = 7200


def finish_night(
    database: Database, days_ago: int, num: int, num_instants: int, **result: object
) -> None:
    """Insert jobs that ended within two hours of a night, many in each flush, as by a worker."""
    begin = NOON - timedelta(days=days_ago, hours=10)
    rows = [
        job_row(
            state="succeeded",
            model="m",
            task="summarize",
            finished_at=begin
            + timedelta(seconds=NIGHT_SECONDS / num_instants * (each * num_instants // num)),
        )
        for each in range(num)
    ]
    ids = insert_jobs(database, rows)
    signals = {**SUCCEEDED, **result}
    with database.write() as session:
        session.execute(insert(Result), [{"job_id": each, **signals} for each in ids])


def drift_of(database: Database, signal: str) -> Drift:
    with database.read() as session:
        drifts = find_drift(
            session, period=timedelta(days=1), reference=timedelta(days=28), until=NOON
        )
    return next(each for each in drifts if each.signal == signal)


def test_a_drift_over_weeks_is_found_in_nights_with_more_results_than_are_read(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest results alone are those of the night before, which has drifted almost as far."""
    monkeypatch.setattr(quality, "MAX_ROWS", 400)
    for days_ago in range(11):
        finish_night(database, days_ago, 500, 20, completion_tokens=60 - 4 * days_ago)
    tokens = drift_of(database, "completion_tokens")
    assert (tokens.num_reference, tokens.num_current) == (400, 400)
    assert tokens.current == 60
    assert tokens.reference == pytest.approx(60 - 4 * 5.5, abs=2.5)
    assert tokens.verdict == "changed"
    assert drift_of(database, "completion_tokens") == tokens, "the same sample each time"


@pytest.mark.parametrize("max_looked_at", [10_000, 600])
def test_a_sample_represents_each_night_by_its_number_of_jobs(
    database: Database, monkeypatch: pytest.MonkeyPatch, max_looked_at: int
) -> None:
    """The same holds where only a part of the period is sampled."""
    monkeypatch.setattr(quality, "MAX_ROWS", 300)
    monkeypatch.setattr(quality, "MAX_LOOKED_AT", max_looked_at)
    begin = NOON - timedelta(days=28)
    for days_ago in range(1, 11):
        finish_night(database, days_ago, 300, 60, completion_tokens=days_ago)
    finish_night(database, 11, 3000, 600, completion_tokens=11)  # half of all
    with database.read() as session:
        rows = quality._sample(session, "m", "summarize", begin, NOON)
        again = quality._sample(session, "m", "summarize", begin, NOON)
    assert rows == again
    assert len(rows) == 300
    nights = [sum(row.completion_tokens == each for row in rows) for each in range(1, 12)]
    assert 120 <= nights[-1] <= 180
    # Each of the others has about 15; sampling by moments selects whole flushes.
    assert min(nights) >= 3
    assert max(nights[:-1]) <= 40


def test_more_jobs_at_one_instant_than_the_limit_are_sampled(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "MAX_ROWS", 60)
    monkeypatch.setattr(quality, "MAX_LOOKED_AT", 100)
    finish_night(database, 3, 500, 1)
    finish_night(database, 0, 500, 1)
    tokens = drift_of(database, "completion_tokens")
    assert (tokens.num_reference, tokens.num_current) == (60, 60)


def test_a_sample_is_drawn_from_an_index_and_no_table_is_read_for_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "MAX_ROWS", 60)
    monkeypatch.setattr(quality, "MAX_LOOKED_AT", 100)
    finish_night(database, 3, 500, 20)
    plans: list[str] = []
    with database.read() as session:
        connection = session.connection()
        is_sqlite = database.dialect == "sqlite"
        if not is_sqlite:
            session.execute(text("SET LOCAL enable_seqscan = off"))  # the table is small

        @event.listens_for(connection, "before_cursor_execute")
        def explain(_: object, cursor: object, statement: str, parameters: object, *__: object):  # type: ignore[no-untyped-def]
            how = "EXPLAIN QUERY PLAN " if is_sqlite else "EXPLAIN "
            cursor.execute(how + statement, parameters)  # type: ignore[attr-defined]
            plans.append("\n".join(map(str, cursor.fetchall())))  # type: ignore[attr-defined]

        quality._sample(session, "m", "summarize", NOON - timedelta(days=28), NOON)
        assert list(quality._places(session)) == [("m", "summarize")]
    moments = [plan for plan in plans if "parts" in plan]
    assert len(moments) >= 2
    for plan in moments:
        # Each moment reads only its own part of the index, not all of it.
        assert re.search(r"finished_at>\?|Index Cond: .*finished_at >=", plan)
        assert "Join Filter" not in plan
    assert len(plans) >= 5
    for plan in plans:
        assert "ix_jobs_ended" in plan
        assert not re.search("SCAN jobs(?! USING (COVERING )?INDEX ix_jobs_ended)", plan)
        assert "Seq Scan on jobs" not in plan
