"""The one task that workers run, for Celery's own pools; `EnginePool` does not come here.

Under the threads or solo pool the body waits for its jobs. Pools that fork or
patch are refused: a model does not survive a fork, and each child would load
its own.
"""

import os
import threading
from typing import Any
from uuid import UUID

from celery.concurrency import solo, thread
from celery.signals import worker_init, worker_shutdown

from tasks.app import app
from worker.pool import RUN_JOBS, EnginePool
from worker.worker import Worker

_lock = threading.Lock()
_worker: Worker | None = None


def _started_worker() -> Worker:
    global _worker
    with _lock:
        if _worker is None:
            _worker = Worker.from_configuration(on_deaf=lambda: os._exit(1))
            _worker.start()
        return _worker


@app.task(name=RUN_JOBS)
def run_jobs(job_ids: list[str]) -> None:
    """Run these jobs and return when their outcomes are committed."""
    settled = threading.Event()
    _started_worker().deliver([UUID(job_id) for job_id in job_ids], settled.set)
    settled.wait()


@worker_init.connect
def _refuse_other_pools(sender: Any, **_: Any) -> None:
    pool = sender.pool_cls
    if not issubclass(pool, EnginePool | thread.TaskPool | solo.TaskPool):
        raise SystemExit(
            f"Tidemill cannot run under the pool {pool.__module__}: a loaded model does not "
            "survive a fork, and every child would load its own. Leave -P away, or use -P threads."
        )


@worker_shutdown.connect
def _stop_worker(**_: Any) -> None:
    global _worker
    with _lock:
        worker, _worker = _worker, None
    if worker is not None:
        worker.drain(worker.settings.drain_seconds)
        worker.stop()
