"""The reading API: jobs with their results, page by page, without knowing the tables."""

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from math import ceil, floor, isfinite
from typing import Any, Final, Literal, cast
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, and_, literal, select, tuple_
from sqlalchemy.orm import aliased

from db.clock import microseconds_between
from db.encryption.key_ring import Unopenable
from db.errors import DatabaseError
from db.lane import Lane
from db.models import AttemptRow, Batch, Job, ModelCardRow, Payload, Result
from db.outcome import SIGNALS
from db.queries import claims, quarantine, submission
from db.queries.conditions import has_pair
from db.session import Database, database_from_environment
from db.states import UNFINISHED, JobState
from db.suspicion import Suspicion

PAGE = 1000
MAX_MESSAGES = 20  # named with one job
MAX_INPUT_CHARACTERS = 8_000_000  # held at once of what jobs were asked
MAX_DURATION = 10**9  # seconds, some thirty years

Order = Literal["oldest", "newest"]
# Of a filter that nobody gave, where None means something else.
_UNSAID: Final = cast(Any, object())


class SearchImpossible(DatabaseError):
    """The database cannot look into what it holds."""


@dataclass(frozen=True, slots=True)
class JobError:
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundJob:
    """A job as a reader sees it; `output` is None until it has succeeded and once it was
    pruned, and `input` unless it was asked for."""

    id: UUID
    batch: str | None
    custom_id: str | None
    task: str
    model: str
    state: JobState
    output: str | None
    alternatives: tuple[str, ...]  # further returned sequences, best first
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    error: JobError | None
    metadata: Mapping[str, str]
    language: str | None
    tenant: str
    attempt: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    input: str | None = None
    left_out_characters: int | None = None  # of its source; None where that says nothing
    cached_parts: int | None = None  # of its requests, those that were not computed for it
    # Signals of the result's quality, as in `db.outcome.Signals`.
    length_ratio: float | None = None
    repetition: float | None = None
    detected_language: str | None = None
    untranslated_share: float | None = None
    num_empty_parts: int | None = None
    num_cut_parts: int | None = None
    num_missed_placeholders: int | None = None
    num_missed_terms: int | None = None
    suspicions: tuple[Suspicion, ...] = ()
    reasoning: str | None = None  # what the model thought before it answered
    reasoning_tokens: int | None = None  # of the completion's
    # When its texts went, by their age or for a person who asked; its counts stay.
    input_pruned_at: datetime | None = None
    output_pruned_at: datetime | None = None
    erased_at: datetime | None = None

    @property
    def wait_seconds(self) -> float | None:
        """From its submission until its last attempt was started; None while it is in line."""
        if self.started_at is None or self.state is JobState.QUEUED:
            return None
        return (self.started_at - self.created_at).total_seconds()

    @property
    def run_seconds(self) -> float | None:
        """What its last attempt took; None for a job that is not finished, or never ran."""
        if self.started_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()

    @property
    def pruned_at(self) -> datetime | None:
        """When the last of its texts went that has gone; None for a job that has them all."""
        return max(filter(None, (self.input_pruned_at, self.output_pruned_at)), default=None)

    @property
    def cursor(self) -> "Cursor":
        """Where this job stands in a list; pass it as `after` for what follows."""
        return Cursor(self.created_at, self.id)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a list that stays where it is when rows are added: a key, not an offset."""

    created_at: datetime
    job_id: UUID

    def __str__(self) -> str:
        return f"{self.created_at.isoformat()}_{self.job_id}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        instant, _, job_id = text.rpartition("_")
        return cls(datetime.fromisoformat(instant), UUID(job_id))


COMPARISONS: Mapping[str, Callable[[Any, Any], ColumnElement[bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}


@dataclass(frozen=True, slots=True)
class SignalFilter:
    """A condition on one signal of a result; a result without that signal is left out."""

    name: str  # one of `db.outcome.SIGNALS`
    comparison: str  # one of COMPARISONS
    value: float | str

    @classmethod
    def parse(cls, text: str) -> "SignalFilter":
        """Read `length_ratio<0.3` or `detected_language=en`; raises ValueError with the fault."""
        comparison = next((each for each in COMPARISONS if each in text), None)
        if comparison is None:
            raise ValueError(f"{text!r} must be NAME<VALUE, with one of {' '.join(COMPARISONS)}")
        name, value = (each.strip() for each in text.split(comparison, 1))
        if name not in SIGNALS:
            raise ValueError(f"{name!r} is no signal; there are {', '.join(SIGNALS)}")
        if name == "detected_language":
            if comparison != "=" or not can_be_kept(value):
                raise ValueError("detected_language can only be = a code such as en")
            return cls(name, comparison, value)
        try:
            return cls(name, comparison, _number(value))
        except ValueError:
            raise ValueError(f"{value!r} is no number, as {name} is") from None

    @property
    def condition(self) -> ColumnElement[bool]:
        return COMPARISONS[self.comparison](getattr(Result, self.name), self.value)


def _number(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(text)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundBatch:
    """A batch as a reader sees it, with how many of its jobs are in each state."""

    id: UUID
    name: str
    run_key: str | None
    tenant: str
    metadata: Mapping[str, str]
    created_at: datetime
    closed_at: datetime | None  # None while jobs are still being added
    states: Mapping[JobState, int]

    @property
    def num_jobs(self) -> int:
        return sum(self.states.values())

    @property
    def num_unfinished(self) -> int:
        return sum(self.states.get(state, 0) for state in UNFINISHED)


@dataclass(frozen=True, slots=True)
class MessageSetAside:
    """A message in the quarantine that names a job, and why it could not be taken."""

    id: UUID
    reason: str  # a code of tasks.quarantine.Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDetails:
    """What is known of a job beyond its result: its place in line, its attempts, its origin."""

    job: FoundJob
    batch_id: UUID | None
    lane: Lane
    priority: int
    idempotency_key: str | None
    num_characters: int
    failures: int
    owner: str | None
    lease_until: datetime | None
    published_at: datetime | None
    not_before: datetime | None
    deadline: datetime | None
    contract: Mapping[str, Any]  # the task's own fields and the params that were given
    provenance: Mapping[str, Any] | None  # model card and settings; None until it has succeeded
    coverage: Mapping[str, Any] | None  # what of a source was read; None where that says nothing
    messages: tuple[MessageSetAside, ...] = ()  # that came by its id; the newest first
    refused_output: str | None = None  # of a failed job: its last answer, which was not as asked


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
    """Jobs that match every given filter, in the order of their submission, read page by page.

    batch:    a batch's name, run key or id
    state:    a state, or None for all; by default the jobs that have an output, or with an
              error_code the jobs that have it
    language: of the output, as the job named it
    metadata: pairs that the job's metadata must hold
    since, until: submitted at or after, and before; with a time zone
    text:     a part of the output, whatever its case
    finish_reason: stop or length
    error_code: of the last attempt, as in `prompt_too_long`
    min_duration, max_duration: `run_seconds`, both included; jobs without are left out
    is_whole: whether all of a source was read; jobs that have no source are left out
    is_suspicious: whether a guard found anything suspicious in the result
    suspicion: a reason that the result is suspicious for
    signals:  each of which the result's signals must fulfil; see `SignalFilter.parse`
    sort:     oldest or newest first
    after:    the `cursor` of a job: only what follows it in that order
    with_input: read what the jobs were asked, too: the text, or the messages of a chat
    database: by default the one that `TIDEMILL_DATABASE_URL` or a `tidemill up`
              in this folder names
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
        found = Result.suspicions.is_not(None)
        statement = statement.where(found if is_suspicious else Result.suspicions.is_(None))
    if suspicion is not None:
        codes = literal(" ") + Result.suspicions + literal(" ")
        statement = statement.where(codes.contains(f" {Suspicion(suspicion)} ", autoescape=True))
    for each in signals:
        statement = statement.where(each.condition)
    return _pages(database, statement, after, limit, sort, with_input)


def can_be_kept(name: object) -> bool:
    """Whether any row can have it: no database keeps a NUL or half a character."""
    if not isinstance(name, str):
        return True
    return "\x00" not in name and not any("\ud800" <= each <= "\udfff" for each in name)


def _microseconds(name: str, seconds: float) -> float:
    if not 0 <= seconds <= MAX_DURATION:
        raise ValueError(f"{name} is {seconds}; it must be seconds, from 0 to {MAX_DURATION:,}")
    # To the nanosecond, so that 0.1 is 100,000 and not a little more.
    return round(seconds * 1e6, 3)


def find_job(job_id: UUID, *, database: Database | None = None) -> FoundJob | None:
    """One job, or None when there is none by that id."""
    statement = _found_jobs().where(Job.id == job_id)
    return next(_pages(database or database_from_environment(), statement, limit=1), None)


def find_details(job_id: UUID, *, database: Database | None = None) -> JobDetails | None:
    """Everything about one job, or None when there is none by that id."""
    database = database or database_from_environment()
    job = find_job(job_id, database=database)
    if job is None:
        return None
    statement = (
        select(
            Job,
            Payload.contract,
            Result.provenance,
            ModelCardRow.content,
            Result.coverage,
            AttemptRow.output,
        )
        .join(Payload, Payload.job_id == Job.id)
        .outerjoin(AttemptRow, and_(AttemptRow.job_id == Job.id, AttemptRow.attempt == Job.attempt))
        .outerjoin(Result, and_(Result.job_id == Job.id, Job.state == JobState.SUCCEEDED))
        .outerjoin(ModelCardRow, ModelCardRow.id == Result.model_card_id)
        .where(Job.id == job_id)
    )
    with database.read() as session:
        row, contract, provenance, model_card, coverage, refused = session.execute(statement).one()
        messages = session.execute(quarantine.quarantined_of(job_id, MAX_MESSAGES)).all()
    return JobDetails(
        job=job,
        batch_id=row.batch_id,
        lane=Lane(row.lane),
        priority=row.priority,
        idempotency_key=row.idempotency_key,
        num_characters=row.num_characters,
        failures=row.failures,
        owner=row.owner,
        lease_until=row.lease_until,
        published_at=row.published_at,
        not_before=row.not_before,
        deadline=row.deadline,
        contract=contract,
        provenance=None if provenance is None else {**(model_card or {}), **provenance},
        messages=tuple(MessageSetAside(*each) for each in messages),
        coverage=coverage,
        refused_output=refused,
    )


def require_keys(database: Database) -> None:
    """Raise KeysUnusable where this process lacks the key of the text that was sent last."""
    newest = select(Payload.contract).order_by(Payload.job_id.desc()).limit(1)
    with contextlib.suppress(Unopenable), database.read() as session:
        session.execute(newest).first()


def find_batches(
    name: str | UUID | None = None,
    *,
    limit: int | None = None,
    database: Database | None = None,
) -> list[FoundBatch]:
    """Batches, newest first.

    name: a batch's name, run key or id; None for every batch
    """
    if not can_be_kept(name):
        return []
    statement = select(Batch).order_by(Batch.created_at.desc(), Batch.id.desc()).limit(limit)
    if name is not None:
        statement = statement.where(Batch.id.in_(batch_ids(name)))
    with (database or database_from_environment()).read() as session:
        batches = session.scalars(statement).all()
        states: dict[UUID | None, dict[JobState, int]] = {}
        for batch_id, state, num_jobs in session.execute(
            submission.states_by_batch([batch.id for batch in batches])
        ):
            states.setdefault(batch_id, {})[JobState(state)] = num_jobs
    return [
        FoundBatch(
            id=batch.id,
            name=batch.name,
            run_key=batch.run_key,
            tenant=batch.tenant,
            metadata=batch.metadata_,
            created_at=batch.created_at,
            closed_at=batch.closed_at,
            states=states.get(batch.id, {}),
        )
        for batch in batches
    ]


def batch_ids(name: str | UUID) -> Select[UUID]:
    """The ids of the batches that go by a name, a run key or an id."""
    try:
        by_id = Batch.id == (name if isinstance(name, UUID) else UUID(name))
    except ValueError:
        return select(Batch.id).where((Batch.name == name) | (Batch.run_key == name))
    return select(Batch.id).where(by_id)


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
    left = limit
    statement = statement.order_by(*_in_order(sort == "newest"))
    while left is None or left > 0:
        page = statement.limit(PAGE if left is None else min(PAGE, left))
        if after is not None:
            page = page.where(_follows(after.created_at, after.job_id, sort == "newest"))
        # A transaction per page: a reader that stops in the middle holds nothing open.
        with database.read() as session:
            rows = session.execute(page).all()
        found = [_found_job(row) for row in rows]
        if with_input:
            yield from _with_inputs(database, found, [row.num_characters for row in rows])
        else:
            yield from found
        if len(found) < (PAGE if left is None else min(PAGE, left)):
            return
        after = found[-1].cursor
        left = None if left is None else left - len(found)


def _with_inputs(
    database: Database, jobs: Sequence[FoundJob], lengths: Sequence[int]
) -> Iterator[FoundJob]:
    """The same jobs with what they were asked, read in parts: a page of books is too much."""
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
    """What a job was asked, as one text: its text, or the messages of a chat, each with its
    role where there are several."""
    if (text := contract.get("text")) is not None:
        return str(text)
    messages = contract.get("messages") or []
    if len(messages) == 1:
        return str(messages[0]["content"])
    spoken = (f"{message['role']}: {message['content']}" for message in messages)
    return "\n\n".join(spoken) or None


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
            "error": JobError(code, message or "") if code else None,
        }
    )


def _suspicions(codes: str | None) -> tuple[Suspicion, ...]:
    """Those that this version knows: a newer worker may have written others."""
    known = set(Suspicion)
    return tuple(Suspicion(code) for code in (codes or "").split() if code in known)


def _in_order(newest_first: bool) -> tuple[ColumnElement[datetime], ColumnElement[UUID]]:
    """When jobs were submitted, and for those of one moment the order of their ids."""
    if newest_first:
        return Job.created_at.desc(), Job.id.desc()
    return Job.created_at.asc(), Job.id.asc()


def _follows(created_at: datetime, job_id: UUID, newest_first: bool) -> ColumnElement[bool]:
    """Rows that follow this one in that order."""
    row = tuple_(literal(created_at, Job.created_at.type), literal(job_id, Job.id.type))
    key = tuple_(Job.created_at, Job.id)
    return key < row if newest_first else key > row
