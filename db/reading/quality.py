"""Quality over time: whether the newest results of a model are like those of before.

For each signal the newest period is held against a reference period by the population stability
index: over bins of the reference's deciles, the sum of (q - p) * ln(q / p), where p and q are the
shares of both periods in a bin. Below 0.1 nothing has changed, above 0.25 something has, by the
usual rule (Siddiqi, Credit Risk Scorecards, 2006). Two samples of the same distribution have an
index of about (bins - 1) * (1/n + 1/m) by chance (Yurdakul and Naranjo, 2020), which is taken off.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from db.clock import now
from db.models import Job, Result
from db.states import JobState

MAX_ROWS = 5_000  # of one model, task and period; the newest
MIN_ROWS = 50  # of a period, below which nothing is said
NUM_BINS = 10
CHANGED = 0.25
SHIFTING = 0.1
# Shares of jobs; every other signal is a figure of each result.
SHARES = ("failed", "cut_by_length", "suspicious", "wrong_language", "empty")
FIGURES = ("completion_tokens", "length_ratio", "repetition", "untranslated_share")


@dataclass(frozen=True, slots=True)
class Drift:
    """The change of one signal of a model's results at a task, between both periods."""

    model: str
    task: str
    signal: str
    reference: float  # the mean
    current: float
    num_reference: int
    num_current: int
    index: float  # population stability index, less what chance makes of it

    @property
    def verdict(self) -> str:
        if self.index > CHANGED:
            return "changed"
        return "shifting" if self.index > SHIFTING else "stable"


def find_drift(
    session: Session, *, period: timedelta, reference: timedelta, until: datetime | None = None
) -> list[Drift]:
    """Every signal of every model and task with enough results in both periods.

    until:     the end of the newest period, by default the database's now
    reference: the time before that period
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
    """The values of each signal, for those jobs of which it says something."""
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
        for name in FIGURES:
            if (value := getattr(row, name)) is not None:
                values[name].append(float(value))
    return values


def stability_index(reference: Sequence[float], current: Sequence[float]) -> float:
    """The population stability index of two samples, less what chance makes of it; at least 0."""
    ordered = sorted(reference)
    # Equal deciles are one edge, so that a signal of few values has few bins.
    edges = sorted({ordered[len(ordered) * each // NUM_BINS] for each in range(1, NUM_BINS)})
    num_bins = len(edges) + 1
    index = 0.0
    for p, q in zip(_shares(reference, edges), _shares(current, edges), strict=True):
        index += (q - p) * math.log(q / p)
    by_chance = (num_bins - 1) * (1 / len(reference) + 1 / len(current))
    return max(index - by_chance, 0.0)


def _shares(values: Sequence[float], edges: Sequence[float]) -> list[float]:
    """The share of the values in each bin; half a value is added to each, so that none is 0."""
    # An edge belongs below it: most values of a share, say, are exactly 0.
    counts = [0.5] * (len(edges) + 1)
    for value in values:
        counts[bisect_right(edges, value) - (value in edges)] += 1
    total = sum(counts)
    return [count / total for count in counts]
