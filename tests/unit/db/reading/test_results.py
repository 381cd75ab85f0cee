"""Reading: what `find_results` finds, and in what order."""

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy
from sqlalchemy import update
from uuid_utils.compat import uuid7

from db import Cursor, FoundJob, find_job, find_results
from db.models import Batch, Job, Payload, Result
from db.outcome import Answer, Signals
from db.queries import inserts
from db.queries.jobs import cancel_retry
from db.reading import batches, results
from db.reading.found_job import JobFailure
from db.reading.signal_filter import SignalFilter
from db.session import Database
from db.states import JobState
from db.suspicion import Suspicion
from tests.samples.jobs import (
    answer,
    claim,
    insert_job,
    insert_jobs,
    job,
    job_row,
    set_columns,
    succeed,
)

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def succeeded(database: Database, output: str = "an answer", **fields: Any) -> UUID:
    job_id = insert_job(database, **fields)
    succeed(database, job_id, answer(output))
    return job_id


def ids(found: Iterator[FoundJob]) -> list[UUID]:
    return [each.id for each in found]


def test_find_results_returns_the_fields_of_a_job(database: Database) -> None:
    job_id = insert_job(
        database, custom_id="d7", language="fr", tenant="press", metadata={"day": "monday"}
    )
    said = Answer(
        output="le moulin",
        alternatives=("la mer", "le port"),
        finish_reason="length",
        prompt_tokens=5,
        completion_tokens=9,
        provenance={},
    )
    succeed(database, job_id, said)

    (found,) = find_results(database=database)

    assert found == find_job(job_id, database=database)
    assert (found.output, found.alternatives) == ("le moulin", ("la mer", "le port"))
    assert (found.finish_reason, found.prompt_tokens, found.completion_tokens) == ("length", 5, 9)
    assert (found.custom_id, found.language, found.tenant) == ("d7", "fr", "press")
    assert (found.metadata, found.error, found.attempt) == ({"day": "monday"}, None, 1)
    assert found.created_at <= found.started_at <= found.finished_at  # type: ignore[operator]
    assert found.created_at.tzinfo is UTC


def test_an_unfinished_job_has_no_output_and_a_failed_one_an_error(database: Database) -> None:
    queued = insert_job(database)
    failed = insert_job(
        database, state=JobState.FAILED, error_code="empty_prompt", error_message="no text"
    )
    found = {each.id: each for each in find_results(state=None, database=database)}
    assert (found[queued].output, found[queued].error) == (None, None)
    assert found[failed].error == JobFailure("empty_prompt", "no text")


def test_a_job_that_is_not_there_is_not_found(database: Database) -> None:
    assert find_job(uuid7(), database=database) is None


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("task", "translate", "summarize"),
        ("language", "fr", "de"),
        ("tenant", "press", "default"),
        ("custom_id", "d7", "d70"),
    ],
)
def test_a_filter_finds_the_jobs_with_its_value(
    database: Database, name: str, value: str, other: str
) -> None:
    wanted = succeeded(database, **{name: value})
    succeeded(database, **{name: other})
    assert ids(find_results(**{name: value}, database=database)) == [wanted]  # type: ignore[arg-type]


def test_filters_narrow_each_other(database: Database) -> None:
    wanted = succeeded(database, task="translate", tenant="press")
    succeeded(database, task="translate")
    succeeded(database, tenant="press")
    assert ids(find_results(task="translate", tenant="press", database=database)) == [wanted]


def test_the_state_is_succeeded_unless_it_is_named(database: Database) -> None:
    done, failed = succeeded(database), insert_job(database, state=JobState.FAILED)
    assert ids(find_results(database=database)) == [done]
    assert ids(find_results(state="failed", database=database)) == [failed]
    assert set(ids(find_results(state=None, database=database))) == {done, failed}


def test_a_batch_goes_by_its_name_its_run_key_and_its_id(database: Database) -> None:
    batch_id = uuid7()
    with database.write() as session:
        row = {"id": batch_id, "name": "nightly", "run_key": "nightly-1", "tenant": "default"}
        session.execute(inserts.insert_unless_there(session, Batch), [{**row, "metadata": {}}])
    wanted = succeeded(database, batch_id=batch_id)
    succeeded(database)
    for name in ("nightly", "nightly-1", batch_id, str(batch_id)):
        (found,) = find_results(batch=name, database=database)
        assert (found.id, found.batch) == (wanted, "nightly")
    assert ids(find_results(batch="another", database=database)) == []


@pytest.mark.parametrize("key", ["day", "a.b", "with space", "it's", 'a "quoted" one', "ключ", "$"])
def test_metadata_is_found_by_its_pairs(database: Database, key: str) -> None:
    wanted = succeeded(database, metadata={key: "monday", "more": "1"})
    succeeded(database, metadata={key: "tuesday"})
    succeeded(database, metadata={"other": "monday"})
    assert ids(find_results(metadata={key: "monday"}, database=database)) == [wanted]
    assert ids(find_results(metadata={key: "monday", "more": "2"}, database=database)) == []


def test_since_is_at_or_after_and_until_is_before(database: Database) -> None:
    noon = datetime(2026, 11, 23, 12, tzinfo=UTC)
    for hour in (-1, 0, 1):
        succeeded(database, custom_id=str(hour), created_at=noon + timedelta(hours=hour))

    def found(**bounds: datetime) -> list[str | None]:
        return [each.custom_id for each in find_results(**bounds, database=database)]  # type: ignore[arg-type]

    assert found(since=noon) == ["0", "1"]
    assert found(until=noon) == ["-1"]
    assert found(since=noon, until=noon + timedelta(hours=1)) == ["0"]
    elsewhere = noon.astimezone(timezone(timedelta(hours=9)))
    assert found(since=elsewhere) == ["0", "1"], "an instant is the same in every time zone"


def test_a_bound_without_a_time_zone_is_refused(database: Database) -> None:
    with pytest.raises(Exception, match="has no time zone"):
        list(find_results(since=datetime(2026, 11, 23), database=database))


@pytest.mark.parametrize(
    ("text", "outputs"),
    [
        ("mill", ["The MILL turned", "a windmill"]),
        ("MILL", ["The MILL turned", "a windmill"]),
        ("100%", ["100% of it"]),
        ("_", ["a_b"]),
        ("\\", ["back\\slash"]),
        ("'", ["the keeper's"]),
        ("/", ["either/or"]),
        ("nothing of the kind", []),
    ],
)
def test_a_text_is_found_in_the_output_as_it_stands(
    database: Database, text: str, outputs: list[str]
) -> None:
    for output in (
        *("The MILL turned", "a windmill", "100% of it", "1000 of it", "a_b", "axb"),
        *("back\\slash", "the keeper's", "either/or"),
    ):
        succeeded(database, output)
    found = find_results(text=text, database=database)
    assert sorted(each.output or "" for each in found) == sorted(outputs)


def test_a_search_ignores_case_in_every_alphabet(database: Database) -> None:
    wanted = succeeded(database, "DIE MÜHLE UND DIE МЕЛЬНИЦА")
    for text in ("mühle", "мельница"):
        assert ids(find_results(text=text, database=database)) == [wanted]


def test_results_come_oldest_first_page_by_page(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "PAGE", 3)
    job_ids = insert_jobs(database, (job_row() for _ in range(10)))
    assert ids(find_results(state=None, database=database)) == sorted(job_ids)
    assert ids(find_results(state=None, limit=7, database=database)) == sorted(job_ids)[:7]
    assert ids(find_results(state=None, limit=3, database=database)) == sorted(job_ids)[:3]
    assert ids(find_results(state=None, limit=0, database=database)) == []


def test_pages_stay_where_they_are_while_jobs_are_added(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "PAGE", 2)
    first = sorted(insert_jobs(database, (job_row() for _ in range(5))))
    reader = find_results(state=None, database=database)
    read = [next(reader).id, next(reader).id, next(reader).id]
    later = insert_job(database)
    assert [*read, *ids(reader)] == [*first, later]


def test_a_reader_that_stops_holds_no_transaction_open(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "PAGE", 1)
    insert_jobs(database, (job_row() for _ in range(3)))
    reader = find_results(state=None, database=database)
    next(reader)
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_cursor_says_where_to_go_on(database: Database) -> None:
    insert_jobs(database, (job_row() for _ in range(3)))
    first, second, third = find_results(state=None, database=database)
    assert ids(find_results(state=None, after=first.cursor, database=database)) == [
        second.id,
        third.id,
    ]
    assert Cursor.parse(str(second.cursor)) == second.cursor
    elsewhere = Cursor(
        second.created_at.astimezone(timezone(timedelta(hours=9))), second.cursor.job_id
    )
    assert ids(find_results(state=None, after=elsewhere, database=database)) == [third.id]


def test_a_job_that_is_retried_shows_no_old_output(database: Database) -> None:
    job_id = insert_job(database, state=JobState.CANCELLED)
    with database.write() as session:
        session.execute(cancel_retry.retry_jobs(Job.id == job_id, [JobState.CANCELLED]))
    found = find_job(job_id, database=database)
    assert found is not None
    assert (found.state, found.output) == (JobState.QUEUED, None)
    assert job(database, job_id).finished_at is None


def ran(database: Database, seconds: float, **fields: Any) -> UUID:
    """A job that waited for two seconds and ran for so long."""
    job_id = succeeded(database, created_at=NOON, **fields)
    started_at = NOON + timedelta(seconds=2)
    finished_at = started_at + timedelta(seconds=seconds)
    set_columns(database, [job_id], started_at=started_at, finished_at=finished_at)
    return job_id


def asked(database: Database, contract: dict[str, Any]) -> str | None:
    job_id = insert_job(database)
    with database.write() as session:
        session.execute(update(Payload).where(Payload.job_id == job_id).values(contract=contract))
    (found,) = (
        each
        for each in find_results(state=None, with_input=True, database=database)
        if each.id == job_id
    )
    return found.input


def test_results_made_from_a_part_of_their_source_are_found(database: Database) -> None:
    jobs = [insert_job(database) for _ in range(3)]
    for job_id, left_out in zip(jobs, (None, 0, 40), strict=True):
        succeed(database, job_id, dataclasses.replace(answer(), left_out_characters=left_out))
    _, whole, part = jobs
    assert ids(find_results(is_whole=False, database=database)) == [part]
    assert ids(find_results(is_whole=True, database=database)) == [whole]
    (found,) = find_results(is_whole=False, database=database)
    assert found.left_out_characters == 40


def test_a_finish_reason_is_found(database: Database) -> None:
    stopped = succeeded(database)
    cut = insert_job(database)
    succeed(database, cut, dataclasses.replace(answer("cut"), finish_reason="length"))
    assert ids(find_results(finish_reason="length", database=database)) == [cut]
    assert ids(find_results(finish_reason="stop", database=database)) == [stopped]


def test_an_error_code_is_found_in_every_state_unless_one_is_named(database: Database) -> None:
    succeeded(database)
    failed = insert_job(database, state=JobState.FAILED, error_code="empty_prompt")
    again = insert_job(database, state=JobState.QUEUED, error_code="empty_prompt")
    insert_job(database, state=JobState.FAILED, error_code="engine_crash")

    def found(**filters: Any) -> list[UUID]:
        return ids(find_results(error_code="empty_prompt", **filters, database=database))

    assert found() == [failed, again]
    assert found(state="failed") == [failed]
    assert found(state="succeeded") == []


@pytest.mark.parametrize(
    ("least", "most", "names"),
    [
        (None, None, ["a", "b", "c", "d"]),
        (0.5, None, ["b", "c", "d"]),
        (0.500001, None, ["c", "d"]),
        (None, 0.5, ["a", "b"]),
        (None, 0.499999, ["a"]),
        (0.1, 0.1, ["a"]),
        (3600, 5000, ["d"]),
        (0, 10**9, ["a", "b", "c", "d"]),
    ],
)
def test_a_duration_is_that_of_the_run_to_the_microsecond(
    database: Database, least: float | None, most: float | None, names: list[str]
) -> None:
    for name, seconds in (("a", 0.1), ("b", 0.5), ("c", 0.9999996), ("d", 4000.25)):
        ran(database, seconds, custom_id=name)
    succeeded_at_once = insert_job(database, state=JobState.CANCELLED)

    found = list(find_results(state=None, min_duration=least, max_duration=most, database=database))

    assert [each.custom_id for each in found if each.id != succeeded_at_once] == names
    assert (succeeded_at_once in [each.id for each in found]) == (least is most is None)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf"), 1e30])
def test_an_invalid_duration_is_refused(database: Database, wrong: float) -> None:
    with pytest.raises(ValueError, match="min_duration"):
        find_results(min_duration=wrong, database=database)
    with pytest.raises(ValueError, match="max_duration"):
        find_results(max_duration=wrong, database=database)
    with pytest.raises(ValueError, match="oldest or newest"):
        find_results(sort="latest", database=database)  # type: ignore[arg-type]


def test_a_found_job_has_the_seconds_that_it_waited_and_ran(database: Database) -> None:
    found = find_job(ran(database, 0.25), database=database)
    assert found is not None
    assert (found.wait_seconds, found.run_seconds) == (2.0, 0.25)

    running = insert_job(database, created_at=NOON)
    claim(database, [running])
    set_columns(database, [running], started_at=NOON + timedelta(seconds=3))
    found = find_job(running, database=database)
    assert found is not None
    assert (found.wait_seconds, found.run_seconds) == (3.0, None)

    set_columns(database, [running], state=JobState.QUEUED)  # given back: it is in line again
    found = find_job(running, database=database)
    assert found is not None
    assert (found.wait_seconds, found.run_seconds) == (None, None)


@pytest.mark.parametrize("page", [1, 2, 3, 100])
def test_the_newest_come_first_page_by_page_and_after_any_of_them(
    database: Database, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(results, "PAGE", page)
    # Four share an instant, so that the id has to decide.
    rows = [job_row(created_at=NOON + timedelta(seconds=max(0, number - 3))) for number in range(7)]
    newest = sorted(insert_jobs(database, rows), reverse=True)

    def found(**more: Any) -> list[FoundJob]:
        return list(find_results(state=None, sort="newest", database=database, **more))

    assert [each.id for each in found()] == newest
    assert [each.id for each in found(limit=5)] == newest[:5]
    for place, each in enumerate(found()):
        cursor = Cursor.parse(str(each.cursor))
        assert [more.id for more in found(after=cursor)] == newest[place + 1 :]
        oldest = find_results(state=None, after=cursor, database=database)
        assert ids(oldest) == newest[:place][::-1], "and the other way from there"


def test_pages_of_the_newest_stay_where_they_are_while_jobs_are_added(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "PAGE", 2)
    first = sorted(insert_jobs(database, (job_row() for _ in range(5))), reverse=True)
    reader = find_results(state=None, sort="newest", database=database)
    read = [next(reader).id, next(reader).id, next(reader).id]
    insert_job(database)
    assert [*read, *ids(reader)] == first


@pytest.mark.parametrize("sort", ["oldest", "newest"])
def test_a_page_is_read_from_the_index_and_not_sorted(database: Database, sort: str) -> None:
    insert_jobs(database, (job_row() for _ in range(50)))
    newest = sort == "newest"
    page = (
        results._found_jobs()
        .order_by(*results._in_order(newest))
        .where(results._follows(NOON, uuid7(), newest))
        .limit(10)
    )
    how = "EXPLAIN QUERY PLAN" if database.dialect == "sqlite" else "EXPLAIN"
    with database.write() as session:
        if database.dialect == "postgresql":
            # So few rows are read whole otherwise, whatever the index could do.
            session.execute(sqlalchemy.text("SET LOCAL enable_seqscan = off"))
            session.execute(sqlalchemy.text("SET LOCAL enable_bitmapscan = off"))
        compiled = page.compile(database.engine, compile_kwargs={"literal_binds": True})
        plan = "\n".join(map(str, session.execute(sqlalchemy.text(f"{how} {compiled}"))))
    assert "ix_jobs_created_at_id" in plan
    assert "TEMP B-TREE" not in plan
    assert "Sort" not in plan


def test_an_input_is_read_when_it_is_requested(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "PAGE", 3)
    monkeypatch.setattr(results, "MAX_INPUT_CHARACTERS", 20)  # two of them at once
    rows = [job_row() for _ in range(7)]
    for number, row in enumerate(rows):
        insert_jobs(database, [row], text=f"text {number}")

    def inputs(**more: Any) -> list[str | None]:
        return [each.input for each in find_results(state=None, database=database, **more)]

    assert inputs() == [None] * 7
    assert inputs(with_input=True) == [f"text {number}" for number in range(7)]
    assert inputs(with_input=True, limit=2) == ["text 0", "text 1"]


def test_the_input_of_a_chat_is_what_was_said(database: Database) -> None:
    question = {"role": "user", "content": "Who keeps it?"}
    before = [{"role": "system", "content": "Be brief."}, question]
    assert asked(database, {"messages": [question]}) == "Who keeps it?"
    assert asked(database, {"messages": before}) == "system: Be brief.\n\nuser: Who keeps it?"


@pytest.mark.parametrize("name", ["a\x00b", "a\udcffb"])
def test_a_filter_that_no_row_can_match_finds_nothing(database: Database, name: str) -> None:
    succeeded(database)
    for one in ("task", "batch", "language", "tenant", "text", "custom_id", "error_code"):
        assert ids(find_results(**{one: name}, database=database)) == []
    assert ids(find_results(metadata={name: "x"}, database=database)) == []
    assert ids(find_results(metadata={"x": name}, database=database)) == []
    assert batches.find_batches(name, database=database) == []


SIGNALS = Signals(
    length_ratio=0.25,
    repetition=0.8,
    detected_language="en",
    untranslated_share=0.5,
    num_empty_parts=1,
    num_cut_parts=2,
    num_missed_placeholders=3,
    num_missed_terms=4,
    suspicions=(Suspicion.TOO_SHORT, Suspicion.REPETITION),
)


def test_suspicious_results_are_found_by_reason_and_by_signal(database: Database) -> None:
    plain, odd, old = (insert_job(database) for _ in range(3))
    measured = Signals(length_ratio=1.0, repetition=0.0, num_empty_parts=0, detected_language="fr")
    succeed(database, plain, dataclasses.replace(answer(), signals=measured))
    succeed(database, odd, dataclasses.replace(answer(), signals=SIGNALS))
    succeed(database, old, answer())

    (found,) = find_results(is_suspicious=True, database=database)
    assert found.id == odd
    assert found.suspicions == ("too_short", "repetition")
    for name in dataclasses.asdict(SIGNALS):
        assert getattr(found, name) == getattr(SIGNALS, name)
    assert ids(find_results(is_suspicious=False, database=database)) == [plain, old]
    assert ids(find_results(suspicion="repetition", database=database)) == [odd]
    assert ids(find_results(suspicion="too_long", database=database)) == []

    def by(*conditions: str) -> list[UUID]:
        signals = [SignalFilter.parse(each) for each in conditions]
        return ids(find_results(signals=signals, database=database))

    assert by("length_ratio<0.3") == by("repetition >= 0.8") == by("num_missed_terms=4") == [odd]
    assert by("length_ratio<=1") == [plain, odd]
    assert by("detected_language=fr") == [plain]
    assert by("length_ratio<=1", "num_empty_parts>0") == [odd]
    assert by("length_ratio>1") == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("length_ratio", "must be NAME<VALUE"),
        ("output=a", "'output' is no signal; there are length_ratio"),
        ("repetition<much", "'much' is no number"),
        ("repetition<nan", "'nan' is no number"),
        ("detected_language<en", "can only be = a code"),
        ("detected_language=\x00", "can only be = a code"),
    ],
)
def test_an_invalid_condition_on_a_signal_is_refused(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        SignalFilter.parse(text)


def test_a_reason_of_a_newer_worker_harms_no_reader(database: Database) -> None:
    job_id = succeeded(database)
    with database.write() as session:
        session.execute(update(Result).values(suspicions="repetition uncanny"))
    (found,) = find_results(is_suspicious=True, database=database)
    assert (found.id, found.suspicions) == (job_id, ("repetition",))
