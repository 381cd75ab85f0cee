"""Consumer: a Celery consumer that survives every message.

Celery logs a message that it cannot handle, with its contents, and deletes it. An error that it did
not foresee ends the worker, and the message waits for the next one. This consumer puts all such
messages into the quarantine. It is chosen with Celery's own setting `worker_consumer`.
"""

import logging
from collections.abc import Callable
from typing import Any

from celery import signals
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.exceptions import ConnectionError as KombuConnectionError
from kombu.utils.json import dumps
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from vine import promise

from db.states import JobState
from tasks.quarantine import MAX_BODY_BYTES, EndedJob, Reason, SetAside, job_id_of
from worker import quarantine
from worker.celery.envelope import Malformed, identity
from worker.celery.task_message import CONTRACTS, check

log = logging.getLogger(__name__)

# The broker's fault, not the message's. Celery's own list has KeyError in it.
BROKER_ERRORS = (
    OSError,
    KombuConnectionError,
    RedisConnectionError,
    RedisTimeoutError,
    ResponseError,
)


class Consumer(CeleryConsumer):
    """Passes valid messages to Celery; one that Celery still refuses is quarantined."""

    def create_task_handler(self, promise: Any = promise) -> Callable[[Any], Any]:
        take = super().create_task_handler(promise)

        def on_task_received(message: Any) -> Any:
            try:
                check(message, self.app.tasks)
                return take(message)
            except BROKER_ERRORS:
                raise
            except Malformed as fault:
                self._set_aside(message, fault)
            except Exception as error:
                log.error("message not taken", extra={"error": type(error).__name__})
                self._set_aside(message, _unexpected(message, Reason.UNEXPECTED))

        return on_task_received

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self._set_aside(message, _unexpected(message, Reason.BAD_CONTENT))

    def on_unknown_message(self, body: Any, message: Any) -> None:
        self._set_aside(message, _unexpected(message, Reason.NO_TASK))

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._set_aside(message, _unexpected(message, Reason.UNKNOWN_TASK))

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._set_aside(message, _unexpected(message, Reason.BAD_HEADERS))

    def _set_aside(self, message: Any, fault: Malformed) -> None:
        # Quarantined before the ack: after a death in between it is delivered and quarantined
        # again.
        quarantine.set_aside(
            _client(message), quarantine.message_of(fault, _queue(message), _raw(message))
        )
        if not message.acknowledged:
            message.ack_log_error(log, self.connection_errors)


@signals.task_revoked.connect
def keep_what_was_revoked(sender: Any, request: Any, terminated: bool, **_: Any) -> None:
    """Store a contract that was revoked before it was taken as a cancelled job."""
    if terminated or sender.name not in CONTRACTS:
        return
    body = dumps([request.args, request.kwargs, {}]).encode()
    quarantine.set_aside(
        None,
        SetAside(
            queue=(request.delivery_info or {}).get("routing_key") or "",
            reason=Reason.REVOKED,
            body=body[:MAX_BODY_BYTES],
            num_bytes=len(body),
            task=sender.name,
            job=EndedJob(
                id=job_id_of(request.id),
                task=sender.name.removeprefix("tasks."),
                error_code=Reason.REVOKED.value,
                error_message=f"its message was not taken: {Reason.REVOKED.sentence}",
                state=JobState.CANCELLED,
            ),
        ),
    )


def _unexpected(message: Any, reason: Reason) -> Malformed:
    return Malformed(reason, *identity(message.headers, message.properties))


def _client(message: Any) -> Any:
    """The redis-py client of the channel that delivered a message; None for other brokers."""
    # Not `channel.client`: on its connection the channel waits for the next message.
    create = getattr(message.channel, "_create_client", None)
    return create() if create is not None else None


def _queue(message: Any) -> str:
    return str((message.delivery_info or {}).get("routing_key") or "")


def _raw(message: Any) -> bytes:
    """The message as a queue entry, which can be put back into a queue."""
    raw = getattr(message, "_raw", None)
    if raw is not None:
        return str(dumps(raw)).encode()
    body = message.body
    return body.encode() if isinstance(body, str) else bytes(body or b"")
