"""Drift: two samples of one distribution are stable, another distribution is found."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert

from db.models import Result
from db.reading.quality import CHANGED, MIN_ROWS, SHIFTING, find_drift, stability_index
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
    """If nearly all of the reference has one value, lower values must not count as it: answers of
    10 tokens are not like answers of 256."""
    assert stability_index(reference, current) > CHANGED
    assert stability_index(reference, list(reference[:: len(reference) // 50])) < CHANGED


def finish(database: Database, num: int, days_ago: float, state: str, **result: object) -> None:
    """Jobs of one model that ended so many days ago, with results of these signals."""
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
        row = {
            "output": "x",
            "alternatives": [],
            "finish_reason": "stop",
            "prompt_tokens": 1,
            "completion_tokens": 20,
            "provenance": {},
            **result,
        }
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
