"""Quality over time: whether a model's newest results resemble earlier ones.

For each signal the newest period is compared with a reference period by the population stability
index: over bins of the reference's deciles, the sum of (q - p) * ln(q / p), where p and q are the
shares of both periods in a bin. By the usual rule an index below 0.1 means no change, above 0.25 a
change (Siddiqi, Credit Risk Scorecards, 2006). Two samples of the same distribution have an index
of about (bins - 1) * (1/n + 1/m) by chance (Yurdakul and Naranjo, 2020), which is subtracted.

If a period has many results, an unbiased sample is read: ids are sorted by their last bits, which
are random (UUIDv7), and the first are taken. So every night counts by its number of results, no
part of a night counts more than another, and two runs read the same sample. If a period has too
many index entries, the sample is drawn from 1,000 short moments spread evenly over it. Choosing the
sample reads only the index `ix_jobs_ended`.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Float,
    Select,
    String,
    and_,
    cast,
    func,
    literal,
    literal_column,
    select,
    true,
    tuple_,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from db.clock import now, seconds_after
from db.models import Job, Result
from db.states import JobState

MAX_ROWS = 5_000  # rows read of one model, task and period
MIN_ROWS = 50  # a period with fewer rows is not judged
MAX_LOOKED_AT = 100_000  # index entries that one sample is drawn from
NUM_MOMENTS = 1_000  # in a period with more than MAX_LOOKED_AT entries
# Written out as literals, for the partial index: see db/queries/conditions.py.
ENDED = Job.state.in_([literal_column("'succeeded'"), literal_column("'failed'")])
NUM_BINS = 10
CHANGED = 0.25
SHIFTING = 0.1
# These signals are shares of jobs; every other signal is a figure of each result.
SHARES = ("failed", "cut_by_length", "suspicious", "wrong_language", "empty", "refused")
FIGURES = ("completion_tokens", "length_ratio", "repetition", "untranslated_share")


@dataclass(frozen=True, slots=True)
class Drift:
    """The change of one signal of a model's results for a task between both periods."""

    model: str
    task: str
    signal: str
    reference: float  # the mean of the reference period
    current: float
    num_reference: int
    num_current: int
    index: float  # population stability index, less the amount expected by chance

    @property
    def verdict(self) -> str:
        if self.index > CHANGED:
            return "changed"
        return "shifting" if self.index > SHIFTING else "stable"


def find_drift(
    session: Session, *, period: timedelta, reference: timedelta, until: datetime | None = None
) -> list[Drift]:
    """The change of every signal, for every model and task with enough results in both periods.

    until:     the end of the newest period; by default the database's now
    reference: the duration of the reference period before it
    """
    end = until or session.execute(select(now())).scalar_one()
    begin = end - period
    drifts: list[Drift] = []
    for model, task in _places(session):
        after = signals_of(_sample(session, model, task, begin, end))
        if max(map(len, after.values())) < MIN_ROWS:
            continue
        before = signals_of(_sample(session, model, task, begin - reference, begin))
        for signal in (*SHARES, *FIGURES):
            old, new = before[signal], after[signal]
            if min(len(old), len(new)) >= MIN_ROWS:
                drifts.append(
                    Drift(
                        model,
                        task,
                        signal,
                        sum(old) / len(old),
                        sum(new) / len(new),
                        len(old),
                        len(new),
                        stability_index(old, new),
                    )
                )
    return drifts


def _places(session: Session) -> Iterator[tuple[str, str]]:
    """Find every model and task with an ended job, by one index lookup each."""
    first = select(Job.model, Job.task).where(ENDED).order_by(Job.model, Job.task).limit(1)
    place = session.execute(first).first()
    while place is not None:
        model, task = place
        yield model, task
        after = tuple_(Job.model, Job.task) > tuple_(literal(model), literal(task))
        place = session.execute(first.where(after)).first()


def _sample(
    session: Session, model: str, task: str, begin: datetime, end: datetime
) -> Sequence[Any]:
    """The signals of an unbiased sample of at most MAX_ROWS jobs that ended in a period."""
    share = 1
    while (num := _num_looked_at(session, model, task, begin, end, share)) > MAX_LOOKED_AT:
        share *= 4
    if num < MAX_ROWS and share > 1:
        # Most jobs ended at a few instants. The larger share has too many entries, and the query's
        # limit cuts them; the smaller has too few for a sample.
        share //= 4
    looked_at = _ended(session, model, task, begin, end, share).limit(MAX_LOOKED_AT).subquery()
    ids = select(looked_at.c.id).order_by(random_bits(looked_at.c.id), looked_at.c.id)
    return session.execute(
        select(
            Job.state,
            Result.finish_reason,
            Result.suspicions,
            *(getattr(Result, name) for name in FIGURES),
        )
        .outerjoin(Result, Result.job_id == Job.id)
        .where(Job.id.in_(ids.limit(MAX_ROWS)))
        .order_by(Job.id)
    ).all()


def _num_looked_at(
    session: Session, model: str, task: str, begin: datetime, end: datetime, share: int
) -> int:
    """The number of ended jobs in a share of a period, counted to MAX_LOOKED_AT + 1 at most."""
    some = _ended(session, model, task, begin, end, share).limit(MAX_LOOKED_AT + 1).subquery()
    return session.execute(select(func.count()).select_from(some)).scalar_one()


def _ended(
    session: Session, model: str, task: str, begin: datetime, end: datetime, share: int
) -> Select[*tuple[Any, ...]]:
    """Select the ids of the jobs that ended in a period, or in 1/share of it.

    For share > 1 the period is cut into NUM_MOMENTS equal parts, and 1/share of each is selected,
    at an offset that varies from part to part. So no periodic load is over-represented.
    """
    of_place = and_(Job.model == model, Job.task == task, ENDED)
    if share == 1:
        return select(Job.id).where(of_place, Job.finished_at >= begin, Job.finished_at < end)
    part_seconds = (end - begin).total_seconds() / NUM_MOMENTS
    moment_seconds = part_seconds / share
    parts = select(literal(0).label("number")).cte("parts", recursive=True)
    following = parts.c.number + 1
    parts = parts.union_all(select(following).where(following < NUM_MOMENTS))
    number = parts.c.number
    # Fractional parts of multiples of the golden ratio are evenly distributed.
    place: ColumnElement[Any] = cast((number * 618_034) % 1_000_000, Float) / 1_000_000.0
    since_begin = cast(number, Float) * part_seconds + place * (part_seconds - moment_seconds)
    in_moment = select(Job.id).where(
        of_place,
        Job.finished_at >= seconds_after(begin, since_begin),
        Job.finished_at < seconds_after(begin, since_begin + moment_seconds),
    )
    if session.get_bind().dialect.name == "sqlite":
        return in_moment.select_from(parts.join(Job, true()))
    # PostgreSQL would run a join on a table without statistics as one scan for each moment. The
    # limit keeps it from turning LATERAL into a join.
    found = in_moment.correlate(parts).limit(MAX_LOOKED_AT + 1).lateral("found")
    return select(found.c.id).select_from(parts.join(found, true()))


class random_bits(FunctionElement[str]):
    """The last 32 bits of an id, which are random in UUIDv7."""

    type = String()
    name = "random_bits"
    inherit_cache = True


@compiles(random_bits, "postgresql")
def _postgresql(element: random_bits, compiler: SQLCompiler, **kw: Any) -> str:
    return f"substring(uuid_send({compiler.process(element.clauses, **kw)}) FROM 13)"


@compiles(random_bits, "sqlite")
def _sqlite(element: random_bits, compiler: SQLCompiler, **kw: Any) -> str:
    return f"substr({compiler.process(element.clauses, **kw)}, 25)"


def signals_of(rows: Sequence[Any]) -> dict[str, list[float]]:
    """The values of each signal, for the jobs that have it."""
    values: dict[str, list[float]] = {name: [] for name in (*SHARES, *FIGURES)}
    for row in rows:
        is_failed = row.state == JobState.FAILED
        values["failed"].append(is_failed)
        if is_failed:
            continue
        suspicions = (row.suspicions or "").split()
        values["cut_by_length"].append(row.finish_reason == "length")
        values["suspicious"].append(bool(suspicions))
        values["wrong_language"].append("wrong_language" in suspicions)
        values["empty"].append("empty" in suspicions)
        values["refused"].append("refused" in suspicions)
        for name in FIGURES:
            if (value := getattr(row, name)) is not None:
                values[name].append(float(value))
    return values


def stability_index(reference: Sequence[float], current: Sequence[float]) -> float:
    """The population stability index of two samples, less its expectation by chance; at least 0."""
    ordered = sorted(reference)
    deciles = Counter(ordered[len(ordered) * each // NUM_BINS] for each in range(1, NUM_BINS))
    # A value that fills more than one decile is a bin of its own, apart from the values below it:
    # nearly all of the reference may have the same value.
    edges, points = sorted(deciles), {value for value, num in deciles.items() if num > 1}
    before, after = (_counts(values, edges, points) for values in (reference, current))
    bins = sorted(before.keys() | after.keys())
    index = 0.0
    for p, q in zip(_shares(before, bins), _shares(after, bins), strict=True):
        index += (q - p) * math.log(q / p)
    by_chance = (len(bins) - 1) * (1 / len(reference) + 1 / len(current))
    return max(index - by_chance, 0.0)


def _counts(
    values: Sequence[float], edges: Sequence[float], points: Container[float]
) -> Counter[int]:
    """The number of values in each non-empty bin.

    An even bin is the range between two edges. The odd one above it is the upper edge itself if
    that is a point; otherwise it is part of the range.
    """
    counts: Counter[int] = Counter()
    for value in values:
        at = bisect_left(edges, value)
        counts[2 * at + (at < len(edges) and value == edges[at] and value in points)] += 1
    return counts


def _shares(counts: Mapping[int, int], bins: Sequence[int]) -> list[float]:
    """The share of the values in each bin; half a value is added to each, so that none is 0."""
    total = sum(counts.values()) + 0.5 * len(bins)
    return [(counts.get(each, 0) + 0.5) / total for each in bins]
