"""What is due is published: by one, in order, and no more than the workers want."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport import memory
from sqlalchemy import event

from db.clock import seconds_from_now
from db.lane import Lane
from db.outcome import Outcome
from db.queries import worker_registry
from db.queries.jobs import completion
from db.session import Database
from tasks.app import app
from tests.running.producers import FAKE, producing, write_config
from tests.samples.jobs import (
    claim,
    claimed_job,
    end_lease,
    insert_job,
    insert_jobs,
    job,
    job_row,
    set_columns,
)
from worker.dispatcher.backlog import in_messages
from worker.dispatcher.dispatcher import BUSY_SECONDS, Dispatcher
from worker.periodic_thread import PeriodicThread
from worker.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@given(
    st.lists(st.tuples(st.uuids(), st.integers(0, 10_000)), unique_by=lambda job: job[0]),
    st.integers(1, 20),
)
def test_every_job_is_in_one_message_with_those_of_its_length(
    jobs: list[tuple[UUID, int]], jobs_per_message: int
) -> None:
    messages = list(in_messages(jobs, jobs_per_message))

    assert sorted(job_id for message in messages for job_id in message) == sorted(
        job_id for job_id, _ in jobs
    )
    assert all(len(message) == jobs_per_message for message in messages[:-1])
    assert all(1 <= len(message) <= jobs_per_message for message in messages)
    length = dict(jobs)
    spans = [[length[job_id] for job_id in message] for message in messages]
    for shorter, longer in pairwise(spans):
        assert max(shorter) <= min(longer)


@pytest.fixture
def broker(database: Database, tmp_path: Path) -> Iterator[None]:
    """A broker within this process, empty."""
    memory.Channel.queues.clear()
    memory.Transport.global_state.clear()
    config = write_config(tmp_path / "tidemill.toml", {"reports": FAKE})
    with producing(database.url.render_as_string(hide_password=False), "memory://", config):
        yield


@dataclass
class Clock:
    """Stands still until a test lets time pass."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def dispatcher(
    database: Database,
    owner: str = "one",
    clock: Callable[[], float] = time.monotonic,
    **settings: float,
) -> Dispatcher:
    return Dispatcher(database, owner, Settings(**settings), clock)  # type: ignore[arg-type]


def live(database: Database, **room: int) -> None:
    with database.write() as session:
        worker_registry.report_worker(session, "one", room, 0, 60)


def published(queue: str = "tidemill.reports.bulk") -> list[list[UUID]]:
    """The messages of a queue, which is empty afterwards."""
    found = []
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        channel.queue_declare(queue)
        while (message := channel.basic_get(queue, no_ack=True)) is not None:
            found.append(
                [UUID(job_id) for job_id in channel.message_to_python(message).payload[0][0]]
            )
    return found


@pytest.mark.usefixtures("broker")
def test_due_jobs_are_published_once(database: Database) -> None:
    live(database, reports=64)
    ids = insert_jobs(database, (job_row() for _ in range(20)))
    it = dispatcher(database, jobs_per_message=8)
    assert (it.poll(), it.poll()) == (20, 0)
    messages = published()
    assert [len(message) for message in messages] == [8, 8, 4]
    assert sorted(job_id for message in messages for job_id in message) == sorted(ids)
    assert all(job(database, each).published_at is not None for each in ids)
    it.stop()


@pytest.mark.usefixtures("broker")
def test_no_more_is_published_than_the_target_of_the_live_workers(database: Database) -> None:
    live(database, reports=5)
    insert_jobs(database, (job_row() for _ in range(30)))
    it = dispatcher(database)
    assert it.poll() == 10
    assert it.poll() == 0
    it.stop()


@pytest.mark.usefixtures("broker")
def test_bulk_jobs_wait_until_a_whole_message_is_missing(
    database: Database,
) -> None:
    live(database, reports=16)  # twice as many may be out
    insert_jobs(database, (job_row() for _ in range(40)))
    it = dispatcher(database, jobs_per_message=8)
    assert it.poll() == 32
    fences = claim(database, [job_id for message in published() for job_id in message])
    for num_finished, num_published in ((7, 0), (1, 8)):
        ended, fences = fences[:num_finished], fences[num_finished:]
        with database.write() as session:
            outcomes = [Outcome.failed(fence, "empty_prompt", "") for fence in ended]
            session.execute(completion.finish_attempts(outcomes)).all()
        assert it.poll() == num_published
    assert [len(message) for message in published()] == [8]
    it.stop()


@pytest.mark.usefixtures("broker")
def test_without_a_live_worker_for_its_model_a_job_waits_in_the_database(
    database: Database,
) -> None:
    live(database, another=64)
    insert_job(database)
    it = dispatcher(database)
    assert it.poll() == 0
    it.stop()


@pytest.mark.usefixtures("broker")
def test_an_interactive_job_goes_alone_whatever_the_target(database: Database) -> None:
    live(database, reports=0)
    job_id = insert_job(database, lane=Lane.INTERACTIVE)
    set_columns(database, [job_id], created_at=seconds_from_now(-60))
    it = dispatcher(database)
    assert it.poll() == 1
    assert published("tidemill.reports.interactive") == [[job_id]]
    it.stop()


@pytest.mark.usefixtures("broker")
def test_the_jobs_of_a_dead_worker_are_published_again(database: Database) -> None:
    live(database, reports=64)
    fence = claimed_job(database)
    end_lease(database, [fence.job_id])
    it = dispatcher(database)
    assert it.poll() == 1
    assert published() == [[fence.job_id]]
    it.stop()


@pytest.mark.usefixtures("broker")
def test_one_of_two_dispatchers_publishes(database: Database) -> None:
    live(database, reports=64)
    one, two = dispatcher(database, "one"), dispatcher(database, "two")
    insert_job(database)
    assert (one.poll(), two.poll()) == (1, 0)
    insert_job(database)
    assert two.poll() == 0
    one.stop()
    assert two.poll() == 1, "a leader that ends resigns"
    two.stop()


@pytest.mark.usefixtures("broker")
def test_a_notification_makes_only_the_leader_poll(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[str] = []
    monkeypatch.setattr(PeriodicThread, "wake", lambda thread: woken.append(thread._name))
    one, two = dispatcher(database, "one"), dispatcher(database, "two")
    one.poll()
    two.poll()
    two._on_notification()
    assert woken == []
    one._on_notification()
    assert woken == ["dispatcher"]
    one.stop()
    one._on_notification()
    assert woken == ["dispatcher"], "who has resigned leaves it to others"
    two.stop()


@contextmanager
def noted(database: Database) -> Iterator[list[str]]:
    """The statements that are run within."""
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith("BEGIN"):
            statements.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield statements
    event.remove(database.engine, "before_cursor_execute", note)


@pytest.mark.usefixtures("broker")
def test_between_two_polls_the_leader_only_publishes(database: Database) -> None:
    live(database, reports=64)
    it = dispatcher(database, dispatch_seconds=3600, lead_seconds=7200)
    assert it.tick() == 3600, "nothing to do: the next poll is when it is time"
    fence = claimed_job(database)
    end_lease(database, [fence.job_id])
    due = insert_job(database)
    with noted(database) as statements:
        assert it.tick() == BUSY_SECONDS, "the workers had nothing: they may be quick"
    assert published() == [[due]], "what a dead worker left waits for a poll"
    assert statements
    assert not any("leaderships" in each for each in statements)
    it._polled_at -= 3600
    assert it.tick() == BUSY_SECONDS
    assert published() == [[fence.job_id]]
    it.stop()


@pytest.mark.usefixtures("broker")
def test_the_next_tick_is_when_half_of_the_queue_is_gone(database: Database) -> None:
    clock = Clock()
    live(database, reports=64)
    insert_jobs(database, (job_row() for _ in range(400)))
    it = dispatcher(database, clock=clock, dispatch_seconds=3, lead_seconds=10)
    assert it.tick() == BUSY_SECONDS
    fences = claim(database, [job_id for message in published() for job_id in message])
    waits = []
    for later_seconds, num_finished in ((0.1, 8), (1, 32), (1, 64), (1, 70), (1, 16)):
        clock.now += later_seconds
        ended, fences = fences[:num_finished], fences[num_finished:]
        with database.write() as session:
            outcomes = [Outcome.failed(fence, "empty_prompt", "") for fence in ended]
            session.execute(completion.finish_attempts(outcomes)).all()
        waits.append(round(it.tick(), 3))
        fences += claim(database, [job_id for message in published() for job_id in message])
    assert waits == [
        0.2,  # too few for a message: twice as long as it took to go
        0.88,  # 40 in 1.1 s, and 32 are half
        0.5,  # 64 in 1 s
        BUSY_SECONDS,  # 70: the line was gone
        2.0,  # 16 in 1 s
    ]
    it.stop()


@pytest.mark.usefixtures("broker")
def test_a_poll_that_finds_nothing_to_do_writes_nothing(database: Database) -> None:
    clock = Clock()
    live(database, reports=64)
    it = dispatcher(database, clock=clock, dispatch_seconds=1, lead_seconds=10)
    with noted(database) as statements:
        it.tick()
    assert any("leaderships" in each for each in statements), "the first says who leads"
    for _ in range(2):
        clock.now += 1
        with noted(database) as statements:
            it.tick()
        assert len(statements) == 6  # what has run out, what is lost, two of room, two lanes
        assert all(each.startswith("SELECT") for each in statements)
    clock.now += 1
    with noted(database) as statements:
        it.tick()
    assert any("leaderships" in each for each in statements), "long before its time is up"
    it.stop()


@pytest.mark.usefixtures("broker")
def test_after_a_tick_that_failed_the_next_is_a_poll(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(database, reports=64)
    it = dispatcher(database, dispatch_seconds=3600, lead_seconds=7200)
    with monkeypatch.context() as patch:
        patch.setattr(it._rescuer, "rescue", Mock(side_effect=OSError))
        with pytest.raises(OSError):
            it.tick()
    another = dispatcher(database, "another")
    another.poll()
    insert_job(database)
    assert it.tick() == 3600, "another leads now"
    assert published() == []
    it.stop()
    another.stop()
