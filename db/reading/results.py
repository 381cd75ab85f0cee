"""The reading API: jobs with their results, page by page, without knowledge of the tables."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from math import ceil, floor
from typing import Any, Final, Literal, cast
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, and_, literal, select, tuple_
from sqlalchemy.orm import aliased

from db.clock import microseconds_between
from db.errors import DatabaseError
from db.models import Batch, Job, Payload, Result
from db.outcome import SIGNALS
from db.queries.conditions import has_pair
from db.queries.jobs import claims
from db.reading.batches import batch_ids
from db.reading.found_job import Cursor, FoundJob, JobFailure
from db.reading.signal_filter import SignalFilter
from db.reading.storable import can_be_kept
from db.session import Database, database_from_environment
from db.states import JobState
from db.suspicion import Suspicion

PAGE = 1000

MAX_INPUT_CHARACTERS = 8_000_000  # characters of inputs that are in memory at once

MAX_DURATION = 10**9  # seconds, about thirty years

Order = Literal["oldest", "newest"]

# The default of filters for which None has a meaning of its own.
_UNSAID: Final = cast(Any, object())


class SearchImpossible(DatabaseError):
    """The database cannot search the texts that it holds."""


def find_results(
    *,
    task: str | None = None,
    batch: str | UUID | None = None,
    state: JobState | str | None = _UNSAID,
    language: str | None = None,
    tenant: str | None = None,
    metadata: Mapping[str, str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    text: str | None = None,
    custom_id: str | None = None,
    finish_reason: str | None = None,
    error_code: str | None = None,
    min_duration: float | None = None,
    max_duration: float | None = None,
    is_whole: bool | None = None,
    is_suspicious: bool | None = None,
    suspicion: Suspicion | str | None = None,
    signals: Iterable[SignalFilter] = (),
    sort: Order = "oldest",
    after: Cursor | None = None,
    limit: int | None = None,
    with_input: bool = False,
    database: Database | None = None,
) -> Iterator[FoundJob]:
    """Jobs that match every given filter, in order of submission, read page by page.

    batch:         a batch's name, run key or id
    state:         a state, or None for all; by default jobs with an output, or with an error_code
                   the jobs that have it
    language:      of the output, as the job named it
    metadata:      pairs that the job's metadata must contain
    since, until:  submitted at or after, and before; with a time zone
    text:          a part of the output, ignoring case
    finish_reason: stop or length
    error_code:    of the last attempt, such as `prompt_too_long`
    min_duration, max_duration: bounds of `run_seconds`, inclusive; jobs without it are left out
    is_whole:      whether the whole source was read; jobs without a source are left out
    is_suspicious: whether a guard found the result suspicious
    suspicion:     a reason for which the result is suspicious
    signals:       conditions that the result's signals must fulfil; see `SignalFilter.parse`
    sort:          oldest or newest first
    after:         the `cursor` of a job: only jobs that follow it in that order
    with_input:    also read the input: the text, or the messages of a chat
    database:      by default the one of `TIDEMILL_DATABASE_URL` or of a `tidemill up` in this
                   folder
    """
    if sort not in ("oldest", "newest"):
        raise ValueError(f"sort is {sort!r}; it can be oldest or newest")
    if state is _UNSAID:
        state = JobState.SUCCEEDED if error_code is None else None
    named = (task, batch, language, tenant, text, custom_id, finish_reason, error_code)
    pairs = dict(metadata or {})
    if not all(map(can_be_kept, (*named, *pairs.keys(), *pairs.values()))):
        return iter(())
    database = database or database_from_environment()
    if text is not None and database.keys is not None:
        raise SearchImpossible(
            "outputs are encrypted, so the database cannot search their text; "
            "find jobs by their metadata, or export them and search there"
        )
    statement = _found_jobs()
    if task is not None:
        statement = statement.where(Job.task == task)
    if batch is not None:
        statement = statement.where(Job.batch_id.in_(batch_ids(batch)))
    if state is not None:
        statement = statement.where(Job.state == JobState(state))
    if language is not None:
        statement = statement.where(Job.language == language)
    if tenant is not None:
        statement = statement.where(Job.tenant == tenant)
    if custom_id is not None:
        statement = statement.where(Job.custom_id == custom_id)
    if finish_reason is not None:
        statement = statement.where(Result.finish_reason == finish_reason)
    if error_code is not None:
        statement = statement.where(Job.error_code == error_code)
    for key, value in pairs.items():
        statement = statement.where(has_pair(database.dialect, Payload.metadata_, key, value))
    if since is not None:
        statement = statement.where(Job.created_at >= since)
    if until is not None:
        statement = statement.where(Job.created_at < until)
    if text is not None:
        statement = statement.where(Result.output.icontains(text, autoescape=True))
    took = microseconds_between(Job.started_at, Job.finished_at)
    if min_duration is not None:
        statement = statement.where(took >= ceil(_microseconds("min_duration", min_duration)))
    if max_duration is not None:
        statement = statement.where(took <= floor(_microseconds("max_duration", max_duration)))
    if is_whole is not None:
        left_out = Result.left_out_characters
        statement = statement.where(left_out == 0 if is_whole else left_out > 0)
    if is_suspicious is not None:
        has_suspicion = Result.suspicions.is_not(None)
        statement = statement.where(has_suspicion if is_suspicious else Result.suspicions.is_(None))
    if suspicion is not None:
        codes = literal(" ") + Result.suspicions + literal(" ")
        statement = statement.where(codes.contains(f" {Suspicion(suspicion)} ", autoescape=True))
    for each in signals:
        statement = statement.where(each.condition)
    return _pages(database, statement, after, limit, sort, with_input)


def _microseconds(name: str, seconds: float) -> float:
    if not 0 <= seconds <= MAX_DURATION:
        raise ValueError(f"{name} is {seconds}; it must be seconds, from 0 to {MAX_DURATION:,}")
    # To the nanosecond, so that 0.1 is 100,000 and not a little more.
    return round(seconds * 1e6, 3)


def find_job(job_id: UUID, *, database: Database | None = None) -> FoundJob | None:
    """One job; None if no job has that id."""
    statement = _found_jobs().where(Job.id == job_id)
    return next(_pages(database or database_from_environment(), statement, limit=1), None)


def _found_jobs() -> Select[*tuple[Any, ...]]:
    batch = aliased(Batch)
    return (
        select(
            Job.id,
            batch.name.label("batch"),
            Job.custom_id,
            Job.task,
            Job.model,
            Job.state,
            Result.output,
            Result.alternatives,
            Result.finish_reason,
            Result.prompt_tokens,
            Result.completion_tokens,
            Result.left_out_characters,
            Result.cached_parts,
            *(getattr(Result, name) for name in (*SIGNALS, "suspicions")),
            Result.reasoning,
            Result.reasoning_tokens,
            Payload.pruned_at.label("input_pruned_at"),
            Result.pruned_at.label("output_pruned_at"),
            Job.erased_at,
            Job.error_code,
            Job.error_message,
            Payload.metadata_.label("metadata"),
            Job.language,
            Job.tenant,
            Job.num_characters,
            Job.attempt,
            Job.created_at,
            Job.started_at,
            Job.finished_at,
        )
        .join(Payload, Payload.job_id == Job.id)
        .outerjoin(Result, and_(Result.job_id == Job.id, Job.state == JobState.SUCCEEDED))
        .outerjoin(batch, batch.id == Job.batch_id)
    )


def _pages(
    database: Database,
    statement: Select[*tuple[Any, ...]],
    after: Cursor | None = None,
    limit: int | None = None,
    sort: Order = "oldest",
    with_input: bool = False,
) -> Iterator[FoundJob]:
    num_left = limit
    statement = statement.order_by(*_in_order(sort == "newest"))
    while num_left is None or num_left > 0:
        page = statement.limit(PAGE if num_left is None else min(PAGE, num_left))
        if after is not None:
            page = page.where(_follows(after.created_at, after.job_id, sort == "newest"))
        # One transaction per page: a reader that stops in the middle leaves none open.
        with database.read() as session:
            rows = session.execute(page).all()
        jobs = [_found_job(row) for row in rows]
        if with_input:
            yield from _with_inputs(database, jobs, [row.num_characters for row in rows])
        else:
            yield from jobs
        if len(jobs) < (PAGE if num_left is None else min(PAGE, num_left)):
            return
        after = jobs[-1].cursor
        num_left = None if num_left is None else num_left - len(jobs)


def _with_inputs(
    database: Database, jobs: Sequence[FoundJob], lengths: Sequence[int]
) -> Iterator[FoundJob]:
    """The jobs with their inputs, read in parts, since a page of books is too much at once."""
    start, num_characters = 0, 0
    for end, length in enumerate(lengths, start=1):
        num_characters += length
        if num_characters < MAX_INPUT_CHARACTERS and end < len(jobs):
            continue
        part = jobs[start:end]
        with database.read() as session:
            rows = session.execute(claims.payloads_of([job.id for job in part]))
            contracts = {job_id: contract for job_id, contract in rows}
        for job in part:
            yield replace(job, input=input_of(contracts.get(job.id, {})))
        start, num_characters = end, 0


def input_of(contract: Mapping[str, Any]) -> str | None:
    """A job's input as one text: its text, or its messages, with roles if several."""
    if (text := contract.get("text")) is not None:
        return str(text)
    messages = contract.get("messages") or []
    if len(messages) == 1:
        return str(messages[0]["content"])
    turns = (f"{message['role']}: {message['content']}" for message in messages)
    return "\n\n".join(turns) or None


def _found_job(row: Row[Any]) -> FoundJob:
    fields = row._asdict()
    code, message = fields.pop("error_code"), fields.pop("error_message")
    del fields["num_characters"]
    return FoundJob(
        **{
            **fields,
            "state": JobState(row.state),
            "output": row.output if row.output_pruned_at is None else None,
            "alternatives": tuple(row.alternatives or ()),
            "suspicions": _suspicions(row.suspicions),
            "error": JobFailure(code, message or "") if code else None,
        }
    )


def _suspicions(codes: str | None) -> tuple[Suspicion, ...]:
    """The suspicions that this version knows; a newer worker may have written others."""
    known_codes = set(Suspicion)
    return tuple(Suspicion(code) for code in (codes or "").split() if code in known_codes)


def _in_order(newest_first: bool) -> tuple[ColumnElement[datetime], ColumnElement[UUID]]:
    """The order of submission, and of ids for jobs of the same instant."""
    if newest_first:
        return Job.created_at.desc(), Job.id.desc()
    return Job.created_at.asc(), Job.id.asc()


def _follows(created_at: datetime, job_id: UUID, newest_first: bool) -> ColumnElement[bool]:
    """Whether a row follows this one in that order."""
    row = tuple_(literal(created_at, Job.created_at.type), literal(job_id, Job.id.type))
    key = tuple_(Job.created_at, Job.id)
    return key < row if newest_first else key > row
