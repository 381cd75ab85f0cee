"""Publishes what the database says is due. It runs in every worker; one of them leads.

Due is what was never published, what a dead worker left, what is to be tried
again, and what the broker lost. Each queue is kept short, about twice what the
live workers hold, so that order is decided late and Redis stays small.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from db.clock import seconds_from_now
from db.lane import Lane
from db.queries import completion, dispatch, worker_registry
from db.session import Database
from db.states import JobState
from tasks.publisher import Message, publish
from tasks.queues import queue_name
from worker.dispatcher.broker import Broker
from worker.dispatcher.notification_listener import Listener
from worker.dispatcher.queue_target import Room, seconds_until_needed
from worker.failpoints import passing
from worker.periodic_thread import Ticker
from worker.settings import Settings

log = logging.getLogger(__name__)

LEADERSHIP = "dispatcher"
BUSY_SECONDS = 0.05
SUBMITTER_SECONDS = 2.0  # the submitter of an interactive job publishes it itself
MAX_PUBLISHED_AT_ONCE = 4096


class Dispatcher:
    """A thread of its own, with its own connection to the broker, and one that hears the bell."""

    def __init__(self, database: Database, owner: str, settings: Settings) -> None:
        self._database = database
        self._owner = owner
        self._settings = settings
        self._broker = Broker()
        self._ticker = Ticker("dispatcher", settings.dispatch_seconds, self._tick, BUSY_SECONDS)
        self._listener = Listener(self._on_ring)
        self._leads = False  # as of the last look at everything
        self._until_needed_seconds = math.inf  # as of the last look
        # On our clock: when it last said that it leads, looked at everything, published.
        self._led_at = self._looked_at = self._filled_at = -math.inf

    def start(self) -> None:
        self._ticker.start()
        self._ticker.wake()  # what waited for a worker waits no longer
        self._listener.start()

    def stop(self) -> None:
        self._listener.stop()
        self._ticker.stop()
        self._broker.close()
        self._resign()

    def _on_ring(self) -> None:
        # All workers hear it, and one of them does something.
        if self._leads:
            self._ticker.wake()

    def _resign(self) -> None:
        self._leads = False
        try:
            with self._database.write() as session:
                session.execute(dispatch.resign(LEADERSHIP, self._owner))
        except SQLAlchemyError as error:
            log.warning("cannot resign", extra={"error": type(error).__name__})

    def _tick(self) -> float:
        now = time.monotonic()
        until_next_seconds = self._looked_at + self._settings.dispatch_seconds - now
        try:
            if self._leads and until_next_seconds > 0:
                # Between two looks at everything, because there is need of more by now or
                # somebody rang: the lead holds for longer, and nobody has died yet.
                self._hand_out()
            else:
                self.dispatch()
                self._looked_at = now
                until_next_seconds = self._settings.dispatch_seconds
        except SQLAlchemyError:
            raise  # a leader without the database is followed by another when its time is up
        except Exception:
            # Redis, as seen from here; another worker may reach it.
            self._resign()
            raise
        return max(BUSY_SECONDS, min(self._until_needed_seconds, until_next_seconds))

    def dispatch(self) -> int:
        """Publish what is due, if this worker leads; returns the number of jobs."""
        self._until_needed_seconds = math.inf
        self._keep_lead()
        if not self._leads:
            return 0
        passing("leading")
        self._recover()
        return self._hand_out()

    def _keep_lead(self) -> None:
        """Lead, or go on leading; who leads need not say so at every look.

        To say it is a row to write and to sync. It is said again long before its time is up,
        and whoever slept until then says it first.
        """
        now = time.monotonic()
        if self._leads and now < self._led_at + self._settings.lead_seconds / 4:
            return
        with self._database.write() as session:
            self._leads = dispatch.lead(
                session, LEADERSHIP, self._owner, self._settings.lead_seconds
            )
        self._led_at = now

    def _hand_out(self) -> int:
        """Publish as many of the jobs that are due as there is room for."""
        filled_seconds = time.monotonic() - self._filled_at
        with self._database.read() as session:
            rooms = room_by_model(session)
            messages = list(self._due(session, rooms))
        self._until_needed_seconds = seconds_until_needed(
            rooms, num_bulk_jobs(messages), filled_seconds
        )
        if not messages:
            return 0
        # Published first and marked then: what dies in between is published
        # twice, and the second finds it claimed.
        publish(messages)
        passing("published")
        job_ids = sorted(job_id for message in messages for job_id in message.job_ids)
        with self._database.write() as session:
            dispatch.mark_published(session, job_ids)
        self._filled_at = time.monotonic()
        return len(job_ids)

    def _recover(self) -> None:
        """See to what dead workers left, what is past its deadline, and what the broker lost.

        It is asked first, which locks nothing and syncs nothing: there is hardly ever any.
        """
        with self._database.read() as session:
            has_run_out = session.scalar(dispatch.has_run_out())
            waiting = session.execute(
                dispatch.published_long_ago(self._settings.lost_seconds)
            ).all()
        if has_run_out:
            with self._database.write() as session:
                self._end_what_has_run_out(session)
        if self._broker.lost_its_data():
            log.warning("the broker has no marker: publishing all queued jobs again")
            self._publish_again(None, 0)
            return
        for model, lane in waiting:
            if self._broker.num_messages(queue_name(model, Lane(lane))) == 0:
                log.warning("messages lost", extra={"model": model, "lane": lane})
                self._publish_again((model, Lane(lane)), self._settings.lost_seconds)

    def _end_what_has_run_out(self, session: Session) -> None:
        """Put what dead workers left back in line, and end what is past its deadline."""
        left = session.execute(dispatch.requeue_expired_leases(MAX_PUBLISHED_AT_ONCE)).all()
        if left:
            log.warning("leases expired", extra={"num_jobs": len(left)})
            session.execute(
                completion.insert_attempts(session),
                [
                    {
                        "job_id": job_id,
                        "attempt": attempt,
                        "owner": None,
                        "started_at": started_at,
                        "next_state": JobState.QUEUED,
                        "error_code": "lease_expired",
                        "error_message": "the worker stopped renewing its lease",
                    }
                    for job_id, attempt, started_at in left
                ],
            )
        overdue = session.scalars(dispatch.expire_overdue(MAX_PUBLISHED_AT_ONCE)).all()
        if overdue:
            log.info("deadlines passed", extra={"num_jobs": len(overdue)})

    def _publish_again(self, queue: tuple[str, Lane] | None, age_seconds: float) -> None:
        with self._database.write() as session:
            session.execute(dispatch.unpublish_queued(queue, seconds_from_now(-age_seconds)))

    def _due(self, session: Session, rooms: Mapping[str, Room]) -> Iterator[Message]:
        """The messages to send now: every interactive job, and bulk ones while there is room."""
        for model, room in rooms.items():
            for job_id, _ in session.execute(
                dispatch.next_to_publish(
                    model, Lane.INTERACTIVE, MAX_PUBLISHED_AT_ONCE, SUBMITTER_SECONDS
                )
            ):
                yield Message(model, Lane.INTERACTIVE, (job_id,))
            num_free = min(room.num_free, MAX_PUBLISHED_AT_ONCE)
            # Whole messages: while the workers have enough at hand, a few places that
            # are free can wait for more.
            if num_free >= max(1, min(self._settings.jobs_per_message, room.num_wanted)):
                jobs = session.execute(dispatch.next_to_publish(model, Lane.BULK, num_free))
                for job_ids in in_messages(jobs, self._settings.jobs_per_message):
                    yield Message(model, Lane.BULK, job_ids)


def room_by_model(session: Session) -> dict[str, Room]:
    """The room of the live workers, taken together."""
    num_wanted: Counter[str] = Counter()
    for of_one in session.scalars(worker_registry.room_of_live_workers()):
        num_wanted.update(of_one)
    num_out = dict(session.execute(dispatch.outstanding_by_model()).all())
    return {model: Room(num, num_out.get(model, 0)) for model, num in num_wanted.items()}


def num_bulk_jobs(messages: Iterable[Message]) -> Counter[str]:
    """How many there are of each model."""
    num_jobs: Counter[str] = Counter()
    for message in messages:
        if message.lane is Lane.BULK:
            num_jobs[message.model] += len(message.job_ids)
    return num_jobs


def in_messages(
    jobs: Iterable[tuple[UUID, int]], jobs_per_message: int
) -> Iterator[tuple[UUID, ...]]:
    """Group (id, number of characters) so that jobs of like length travel together."""
    by_length = [job_id for job_id, _ in sorted(jobs, key=lambda job: job[1])]
    for start in range(0, len(by_length), jobs_per_message):
        yield tuple(by_length[start : start + jobs_per_message])
