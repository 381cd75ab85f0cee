"""Quality over time: whether a model's newest results resemble earlier ones.

For each signal the newest period is compared with a reference period by the population stability
index: over bins of the reference's deciles, the sum of (q - p) * ln(q / p), where p and q are the
shares of both periods in a bin. By the usual rule an index below 0.1 means no change, above 0.25 a
change (Siddiqi, Credit Risk Scorecards, 2006). Two samples of the same distribution have an index
of about (bins - 1) * (1/n + 1/m) by chance (Yurdakul and Naranjo, 2020), which is subtracted.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from db.clock import now
from db.models import Job, Result
from db.states import JobState

MAX_ROWS = 5_000  # the newest rows of one model, task and period
MIN_ROWS = 50  # a period with fewer rows is not judged
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
    places = session.execute(
        select(Job.model, Job.task)
        .where(Job.finished_at >= begin, Job.finished_at < end)
        .distinct()
        .order_by(Job.model, Job.task)
    ).all()
    drifts: list[Drift] = []
    for model, task in places:
        current = signals_of(session.execute(_ended(model, task, begin, end)).all())
        before = signals_of(session.execute(_ended(model, task, begin - reference, begin)).all())
        for signal in (*SHARES, *FIGURES):
            old, new = before[signal], current[signal]
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


def _ended(model: str, task: str, begin: datetime, end: datetime) -> Select[*tuple[Any, ...]]:
    return (
        select(
            Job.state,
            Result.finish_reason,
            Result.suspicions,
            *(getattr(Result, name) for name in FIGURES),
        )
        .outerjoin(Result, Result.job_id == Job.id)
        .where(
            Job.model == model,
            Job.task == task,
            Job.finished_at >= begin,
            Job.finished_at < end,
            Job.state.in_([JobState.SUCCEEDED, JobState.FAILED]),
        )
        .order_by(Job.finished_at.desc())
        .limit(MAX_ROWS)
    )


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
