"""Reading: what `find_results` finds, and in what order."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from db import Cursor, FoundJob, find_job, find_results, queries, reading
from db.models import Batch, Job
from db.outcome import Answer, Outcome
from db.session import Database
from db.states import JobState
from tests.jobs import answer, claim, insert_job, insert_jobs, job, job_row
from worker.committer import result_row


def succeeded(database: Database, output: str = "an answer", **fields: Any) -> UUID:
    job_id = insert_job(database, **fields)
    finish(database, job_id, answer(output))
    return job_id


def finish(database: Database, job_id: UUID, said: Answer) -> None:
    (fence,) = claim(database, [job_id])
    outcome = Outcome.succeeded(fence, said)
    with database.write() as session:
        session.execute(queries.finish_attempts([outcome]))
        session.execute(queries.insert_results(), [result_row(outcome)])


def ids(found: Iterator[FoundJob]) -> list[UUID]:
    return [each.id for each in found]


def test_what_is_found(database: Database) -> None:
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
    finish(database, job_id, said)

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
    assert found[failed].error == reading.JobError("empty_prompt", "no text")


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
def test_a_filter_finds_what_has_the_value(
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
        session.execute(queries.insert_unless_there(session, Batch), [{**row, "metadata": {}}])
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


def test_the_case_of_every_alphabet_is_passed_over(database: Database) -> None:
    wanted = succeeded(database, "DIE MÜHLE UND DIE МЕЛЬНИЦА")
    for text in ("mühle", "мельница"):
        assert ids(find_results(text=text, database=database)) == [wanted]


def test_results_come_oldest_first_page_by_page(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PAGE", 3)
    job_ids = insert_jobs(database, (job_row() for _ in range(10)))
    assert ids(find_results(state=None, database=database)) == sorted(job_ids)
    assert ids(find_results(state=None, limit=7, database=database)) == sorted(job_ids)[:7]
    assert ids(find_results(state=None, limit=3, database=database)) == sorted(job_ids)[:3]
    assert ids(find_results(state=None, limit=0, database=database)) == []


def test_pages_stay_where_they_are_while_jobs_are_added(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PAGE", 2)
    first = sorted(insert_jobs(database, (job_row() for _ in range(5))))
    reader = find_results(state=None, database=database)
    read = [next(reader).id, next(reader).id, next(reader).id]
    later = insert_job(database)
    assert [*read, *ids(reader)] == [*first, later]


def test_a_reader_that_stops_holds_no_transaction_open(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PAGE", 1)
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
        session.execute(queries.retry_jobs(Job.id == job_id, [JobState.CANCELLED]))
    found = find_job(job_id, database=database)
    assert found is not None
    assert (found.state, found.output) == (JobState.QUEUED, None)
    assert job(database, job_id).finished_at is None
