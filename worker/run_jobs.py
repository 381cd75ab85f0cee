"""The one task that workers run, for Celery's own pools; `EnginePool` does not come here.

Under the threads or solo pool the body waits for its jobs. Pools that fork or
patch are refused: a model does not survive a fork, and each child would load
its own. (`-P prefork` is how Celery spells its default, which is our pool.)
"""

import os
import threading
from typing import Any
from uuid import UUID

from celery.concurrency import solo, thread
from celery.signals import worker_init, worker_shutdown

from db.session import DatabaseError
from tasks.app import app
from tasks.errors import TidemillError
from worker import channel
from worker.pool import RUN_JOBS, EnginePool
from worker.worker import Worker

_worker: Worker | None = None


@app.task(name=RUN_JOBS)
def run_jobs(job_ids: list[str]) -> None:
    """Run these jobs and return when their outcomes are committed."""
    assert _worker is not None, "not in a worker"
    settled = threading.Event()
    _worker.deliver([UUID(job_id) for job_id in job_ids], settled.set)
    settled.wait()


@worker_init.connect
def start_under_another_pool(sender: Any, **_: Any) -> None:
    """Start here, before anything is consumed, what `EnginePool` starts by itself."""
    global _worker
    pool = sender.pool_cls
    if issubclass(pool, EnginePool):
        return
    if not issubclass(pool, thread.TaskPool | solo.TaskPool):
        raise SystemExit(
            f"Tidemill cannot run under the pool {pool.__module__}: a loaded model does not "
            "survive a fork, and every child would load its own. Leave -P away, or use -P threads."
        )
    channel.mend()
    try:
        _worker = Worker.from_configuration(on_deaf=lambda: os._exit(1))
        _worker.start()
    except (TidemillError, DatabaseError) as error:
        raise SystemExit(str(error)) from error


@worker_shutdown.connect
def stop_under_another_pool(**_: Any) -> None:
    if _worker is not None:
        _worker.drain(_worker.settings.drain_seconds)
        _worker.stop()
