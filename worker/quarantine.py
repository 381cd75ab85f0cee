"""The worker's side of the quarantine: first in Redis, and later in the database.

Redis is certain to be there when a message has just come from it; the database may not be. A thread
moves the message when the database is.
"""

import logging
import time
from collections import deque
from typing import Any

from db.session import Database
from tasks.quarantine import MAX_BODY_BYTES, EndedJob, Reason, SetAside, job_id_of, keep
from tasks.queues import RUN_JOBS
from worker.celery.envelope import Malformed
from worker.celery.task_message import CONTRACTS
from worker.dispatcher.broker import Broker
from worker.periodic_thread import PeriodicThread

log = logging.getLogger(__name__)

KEY = "tidemill:quarantine"
MISPLACED = "tidemill:misplaced"
MAX_WAITING = 10_000
# The number of messages that wait for the database and the bytes kept of each: 60 MB in all.
BODY_LIMITS = ((200, MAX_BODY_BYTES), (2_000, 4 * 2**10), (MAX_WAITING, 512))
MOVE_SECONDS = 0.5
MOVED_AT_ONCE = 200
LINES_A_MINUTE = 10

# Messages that Redis refused because it is full or a replica. They are lost only with this process.
_waiting: deque[SetAside] = deque(maxlen=MAX_WAITING)
num_set_aside = 0  # since this process started


def set_aside(client: Any, message: SetAside) -> None:
    """Put a message into the quarantine. Never raises, so that later messages are served.

    client: of redis-py, or None
    """
    global num_set_aside
    num_set_aside += 1
    _log_limited(message)
    try:
        if client is None:
            raise ConnectionError
        num_waiting = client.llen(KEY)
        limit = next((limit for num, limit in BODY_LIMITS if num_waiting < num), 0)
        with client.pipeline() as pipeline:
            pipeline.lpush(KEY, message.to_json(limit))
            pipeline.ltrim(KEY, 0, MAX_WAITING - 1)
            pipeline.execute()
    except Exception:  # full, away, a replica; the thread below writes it
        _waiting.append(message)


def message_of(fault: Malformed, queue: str, body: bytes) -> SetAside:
    """The quarantined message for a fault, with the job that it would have been."""
    job = None
    if fault.message_id is not None and fault.task != RUN_JOBS:
        task = fault.task.removeprefix("tasks.") if fault.task in CONTRACTS else "unknown"
        job = EndedJob(
            id=job_id_of(fault.message_id),
            task=task,
            error_code=fault.reason.value,
            error_message=_sentence(fault),
        )
    return SetAside(
        queue=queue,
        reason=fault.reason,
        body=body[:MAX_BODY_BYTES],
        num_bytes=len(body),
        task=fault.task,
        origin=fault.origin,
        job=job,
    )


def _sentence(fault: Malformed) -> str:
    sentence = f"its message was not taken: {fault.reason.sentence}"
    if fault.reason is Reason.UNKNOWN_TASK and fault.task is not None:
        sentence += f"; known: {', '.join(sorted(CONTRACTS))}"
    return sentence


class QuarantineMover:
    """A thread with its own connection to Redis that moves quarantined messages to the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._broker = Broker()
        self._thread = PeriodicThread("quarantine", MOVE_SECONDS, self._tick)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._thread.stop()
        self._broker.close()

    def _tick(self) -> None:
        self._write_held()
        while self._move():
            pass

    def _write_held(self) -> None:
        messages = [_waiting[place] for place in range(min(len(_waiting), MOVED_AT_ONCE))]
        if not messages:
            return
        with self._database.write() as session:
            keep(session, messages)
        for _ in messages:
            _waiting.popleft()

    def _move(self) -> bool:
        """Move some messages, oldest first. Returns whether there may be more.

        They are written before they are removed. A message whose removal failed is written twice
        under the same id.
        """
        if self._broker.is_redis:
            client = self._broker.client
            entries = client.lrange(KEY, -MOVED_AT_ONCE, -1)
            if not entries:
                return False
            with self._database.write() as session:
                keep(session, [each for each in map(_read, entries) if each is not None])
            with client.pipeline() as pipeline:
                for entry in entries:
                    pipeline.lrem(KEY, -1, entry)
                pipeline.execute()
            return len(entries) == MOVED_AT_ONCE
        return False


def _read(entry: bytes) -> SetAside | None:
    """The message; None if another program put it there."""
    try:
        return SetAside.from_json(entry)
    except Exception:
        return SetAside(
            queue=KEY,
            reason=Reason.NOT_AN_ENVELOPE,
            body=entry[:MAX_BODY_BYTES],
            num_bytes=len(entry),
        )


_printed_at: deque[float] = deque(maxlen=LINES_A_MINUTE)


def _log_limited(message: SetAside) -> None:
    """Log a line for each message while they are few, so that a flood does not fill the log."""
    now = time.monotonic()
    if len(_printed_at) == LINES_A_MINUTE and now - _printed_at[0] < 60:
        return
    _printed_at.append(now)
    job_id = message.job_id or (message.job and message.job.id)
    log.warning(
        "message set aside",
        extra={
            "reason": message.reason.value,
            "num_bytes": message.num_bytes,
            "job_id": str(job_id) if job_id else None,
            "num_set_aside": num_set_aside,
        },
    )
