"""EnginePool: the Celery pool that passes messages to a Worker.

Celery's thread pool lacks time limits, terminate and a cold stop. This pool has them, and no thread
waits for a job. Celery's own callbacks, called after the commit, ack on Celery's thread.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any
from uuid import UUID

from billiard.einfo import ExceptionInfo
from celery.concurrency.thread import TaskPool
from celery.exceptions import Reject, WorkerShutdown
from celery.signals import worker_shutting_down
from celery.worker import state
from kombu.serialization import loads
from kombu.utils.json import dumps

from db.errors import DatabaseError
from tasks.errors import TidemillError
from tasks.quarantine import MAX_BODY_BYTES, Reason, SetAside
from tasks.queues import RUN_JOBS
from tasks.submission.message import give_up
from worker import quarantine
from worker.celery import redis_channel
from worker.celery.task_message import JSON_ONLY
from worker.failpoints import passing
from worker.worker import Worker

log = logging.getLogger(__name__)

MAX_IDS = 4096  # of one message: a statement of the database takes no more


class Handle:
    """A message in progress. It ends once: settled, terminated by Celery, or past its limit.

    It replaces the pool's result object; Celery calls its `terminate` and `cancel`.
    """

    def __init__(self, terminate: Callable[[], None]) -> None:
        self._terminate = terminate
        self._lock = threading.Lock()
        self._has_ended = False
        self._timer: threading.Timer | None = None

    def terminate(self, signal: int | None = None) -> None:
        self._terminate()

    def limit(self, seconds: float, on_timeout: Callable[[], None]) -> None:
        """Call `on_timeout` after so many seconds, unless the message has ended by then."""
        timer = threading.Timer(seconds, on_timeout)
        timer.daemon = True
        with self._lock:
            if not self._has_ended:
                self._timer = timer
                timer.start()

    def end(self) -> bool:
        """End the message and its timer. Returns whether this call, of any thread, is the first."""
        with self._lock:
            is_first, self._has_ended = not self._has_ended, True
            if self._timer is not None:
                self._timer.cancel()
        return is_first


class EnginePool(TaskPool):
    """Runs `tasks.run_jobs` on the engines, and any other task in a thread."""

    worker: Worker

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Celery keeps only a weak reference.
        self._handles: set[Handle] = set()

    def on_start(self) -> None:
        """Load the models before anything is consumed."""
        redis_channel.mend()
        try:
            self.worker = Worker.from_configuration(on_consumer_stalled=self._end_stalled)
            self.worker.start()
        except (TidemillError, DatabaseError) as error:
            log.critical("%s", error)
            raise WorkerShutdown(1) from error
        self._stopped = threading.Event()
        self._num_signals = 0
        self._woken, self._waker = socket.socketpair()
        worker_shutting_down.connect(self._on_signal)
        worker_shutting_down.connect(give_up)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] = lambda result: None,
        accept_callback: Callable[..., Any] = lambda pid, at: None,
        timeout_callback: Callable[..., Any] = lambda soft, limit: None,
        error_callback: Callable[..., Any] = lambda einfo: None,
        timeout: float | None = None,
        **options: Any,
    ) -> Any:
        if args[0] != RUN_JOBS:
            return super().on_apply(target, args, kwargs, callback, accept_callback)
        passing("delivered")
        started_at = monotonic()
        accept_callback(os.getpid(), started_at)

        def ends() -> bool:
            self._handles.discard(handle)
            return handle.end()

        def settled() -> None:
            if ends():
                callback((0, None, monotonic() - started_at))

        def terminated() -> None:
            """Release the jobs and put the message back, since nothing has been acked yet."""
            self.worker.release(delivery)
            if ends():
                error_callback(_rejection())

        def timed_out() -> None:
            self.worker.release(delivery)
            if ends():
                timeout_callback(False, timeout)

        handle = Handle(terminated)
        self._handles.add(handle)
        _, _, request, body, content_type, content_encoding = args
        arguments, kwargs, _ = loads(body, content_type, content_encoding, accept=JSON_ONLY)
        delivery = self.worker.deliver(job_ids_of(arguments, kwargs, request), settled)
        if timeout:
            handle.limit(timeout, timed_out)
        return handle

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Do nothing: Celery also calls the handle, which knows its jobs."""

    def on_stop(self) -> None:
        if self._stopped.is_set():
            return
        self._stopped.set()
        if state.should_terminate:
            self.worker.stop_now()
        # Celery may be inside its own handler now, and would ignore further signals.
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
            signal.signal(number, lambda *_: self.worker.stop_now())
        self.worker.drain(self.worker.settings.drain_seconds)
        self.worker.stop()
        super().on_stop()

    def register_with_event_loop(self, hub: Any) -> None:
        """Let a signal interrupt Celery's wait for a message, which takes up to a second."""
        hub.add_reader(self._woken, self._woken.recv, 1)

    def _on_signal(self, **_: Any) -> None:
        """Start the stop, in Celery's signal handler.

        A second signal, of either kind, stops at once.
        """
        self._waker.send(b"\0")
        self._num_signals += 1
        if self._num_signals > 1:
            self.worker.stop_now()

    def on_terminate(self) -> None:
        self.on_stop()

    def _end_stalled(self) -> None:
        # No job runs, so there is nothing to drain, and Celery's own shutdown may hang on the
        # stalled connection.
        self.worker.stop()
        os._exit(1)

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "tidemill": self.worker.info()}


def job_ids_of(args: list[Any], kwargs: dict[str, Any], request: Any) -> list[UUID]:
    """The job ids in a message; one with other values besides is also quarantined."""
    named = args[0] if len(args) == 1 and not kwargs else None
    if kwargs.keys() == {"job_ids"} and not args:
        named = kwargs["job_ids"]
    job_ids = []
    if isinstance(named, list) and len(named) <= MAX_IDS:
        job_ids = [job_id for job_id in map(_uuid, named) if job_id is not None]
        if len(job_ids) == len(named) > 0:
            return job_ids
    log.warning("malformed message dropped", extra={"message_id": request.get("id")})
    body = dumps([args, kwargs, {}]).encode()
    quarantine.set_aside(
        None,
        SetAside(
            queue=(request.get("delivery_info") or {}).get("routing_key") or "",
            reason=Reason.BAD_JOB_IDS,
            body=body[:MAX_BODY_BYTES],
            num_bytes=len(body),
            task=RUN_JOBS,
            origin=request.get("origin"),
        ),
    )
    return job_ids


def _uuid(text: Any) -> UUID | None:
    try:
        return UUID(text)
    except (TypeError, ValueError, AttributeError):
        return None


def _rejection() -> ExceptionInfo:
    try:
        raise Reject("released", requeue=True)
    except Reject:
        return ExceptionInfo()
