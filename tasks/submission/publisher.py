"""Publisher: sends job ids to the workers' queues in Redis."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from kombu import Connection, Producer
from kombu.exceptions import OperationalError
from kombu.pools import connections

from db.lane import Lane
from tasks.app import app
from tasks.queues import queue_name

log = logging.getLogger(__name__)

# For a Redis that accepts a connection and does not answer. It is tried twice, and the submitter
# waits meanwhile; Celery's own thread may wait longer for a message.
ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class JobMessage:
    """A message in Redis: ids of jobs for one model and lane."""

    model: str
    lane: Lane
    job_ids: tuple[UUID, ...]


def publish(messages: Iterable[JobMessage]) -> None:
    """Send the messages in as few round trips as the transport allows.

    Raises the transport's errors: kombu.exceptions.OperationalError if Redis cannot be reached.
    """
    messages = list(messages)
    while True:
        to = app.connection_for_write(transport_options={"socket_timeout": ANSWER_SECONDS})
        with connections[to].acquire(block=True) as connection:
            was_open = connection.connected
            try:
                # One round trip shows that Redis does not answer, without a minute of retries: the
                # dispatcher publishes later what is not published now.
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)
                _send(connection, messages)
                return
            except (OperationalError, *connection.connection_errors):
                if not was_open:
                    raise
                # The connection is an old one, and Redis may have been restarted since. A message
                # that was half sent is sent twice, and the second delivery finds the job claimed.
                connection.close()


def _send(connection: Connection, messages: list[JobMessage]) -> None:
    producer = Producer(connection)
    with producer.batch():
        for message in messages:
            app.send_task(
                "tasks.run_jobs",
                args=[[str(job_id) for job_id in message.job_ids]],
                queue=queue_name(message.model, message.lane),
                producer=producer,
                retry=False,
                argsrepr="[ids]",
                kwargsrepr="{}",
            )
