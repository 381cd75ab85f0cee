"""Finished parts are kept with the group commits, by the attempt that may, until the result."""

from typing import Any

from sqlalchemy import func, select

from db.models import Segment
from db.outcome import Fence, FinishedSegment, Outcome
from db.session import Database
from tests.running.workers import until
from tests.samples.jobs import answer, claim, claimed_job, end_lease
from tests.unit.worker.test_committer import committing


def segments(database: Database) -> list[tuple[int, Any]]:
    with database.read() as session:
        rows = session.execute(select(Segment.position, Segment.output).order_by(Segment.position))
        return [(position, output) for position, output in rows]


def part(fence: Fence, position: int, said: str = "a part") -> FinishedSegment:
    return FinishedSegment(fence, position, {"said": said})


def test_segments_of_one_moment_are_one_commit_and_no_outcome(database: Database) -> None:
    fence = claimed_job(database)
    with committing(database, flush_outcomes=3, flush_seconds=60.0) as (committer, written):
        for position in range(3):
            committer.keep(part(fence, position))
        until(lambda: len(segments(database)) == 3, "three segments")
        assert committer.num_unwritten == 0
    assert written.outcomes == []


def test_the_newest_segment_of_a_position_is_kept(database: Database) -> None:
    fence = claimed_job(database)
    with committing(database, flush_seconds=60.0) as (committer, _):
        committer.keep(part(fence, 4, "of another model"))
        committer.keep(part(fence, 4))
    assert segments(database) == [(4, {"said": "a part"})]
    with committing(database, flush_seconds=60.0) as (committer, _):
        committer.keep(part(fence, 4, "again"))
    assert segments(database) == [(4, {"said": "again"})]


def test_an_older_attempt_keeps_nothing(database: Database) -> None:
    fence = claimed_job(database)
    end_lease(database, [fence.job_id])
    (newer,) = claim(database, [fence.job_id], "two")
    with committing(database, flush_seconds=60.0) as (committer, _):
        committer.keep(part(fence, 1, "too late"))
        committer.keep(part(newer, 2))
    assert segments(database) == [(2, {"said": "a part"})]


def test_segments_go_when_the_job_has_its_result_and_stay_when_it_has_none(
    database: Database,
) -> None:
    done, failed = claimed_job(database), claimed_job(database)
    with committing(database, flush_seconds=60.0) as (committer, _):
        for fence in (done, failed):
            committer.keep(part(fence, 0))
        committer.put(Outcome.succeeded(done, answer(), has_segments=True))
        committer.put(Outcome.failed(failed, "broken", "it broke"))
    with database.read() as session:
        left = session.scalars(select(Segment.job_id)).all()
    assert left == [failed.job_id]


def test_a_segment_that_the_database_refuses_affects_no_other_write(database: Database) -> None:
    one, other = claimed_job(database), claimed_job(database)
    with committing(database, flush_seconds=60.0) as (committer, written):
        committer.keep(part(one, 0, "half a character: \ud83d\x00"))
        committer.keep(part(other, 0))
        committer.put(Outcome.succeeded(one, answer(), has_segments=True))
    assert [each.fence for each in written.outcomes] == [one]
    with database.read() as session:
        num = session.scalar(select(func.count()).where(Segment.job_id == other.job_id))
    assert num == 1
