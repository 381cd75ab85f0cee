"""`tasks.run_jobs` under Celery's own pools; `EnginePool` does not use this.

Under the threads or solo pool the task waits for its jobs. Pools that fork or monkey-patch are
refused: a model does not survive a fork, and each child would load its own.
"""

import gc
import os
import threading
from typing import Any

import click
from celery import Task
from celery.concurrency import solo, thread
from celery.signals import worker_init, worker_ready, worker_shutdown, worker_shutting_down
from click.core import ParameterSource

from db.errors import DatabaseError
from tasks.app import app
from tasks.errors import TidemillError
from tasks.queues import RUN_JOBS
from tasks.submission.message import give_up
from worker.celery import redis_channel
from worker.celery.pool import EnginePool, job_ids_of
from worker.worker import Worker

_worker: Worker | None = None


@app.task(name=RUN_JOBS, bind=True)
def run_jobs(self: "Task[..., None]", /, *args: Any, **kwargs: Any) -> None:
    """Run the jobs of a message; return when their outcomes are committed."""
    assert _worker is not None, "not in a worker"
    settled = threading.Event()
    _worker.deliver(job_ids_of(list(args), kwargs, self.request), settled.set)
    settled.wait()


@worker_init.connect
def start_under_another_pool(sender: Any, **_: Any) -> None:
    """Start the worker before anything is consumed, as `EnginePool` does by itself."""
    global _worker
    pool = sender.pool_cls
    if issubclass(pool, EnginePool):
        if _prefork_was_asked_for():
            raise _refusal("prefork")
        return
    if not issubclass(pool, thread.TaskPool | solo.TaskPool):
        raise _refusal(pool.__module__)
    redis_channel.mend()
    worker_shutting_down.connect(give_up)
    try:
        _worker = Worker.from_configuration(on_consumer_stalled=lambda: os._exit(1))
        _worker.start()
    except (TidemillError, DatabaseError) as error:
        raise SystemExit(str(error)) from error


def _prefork_was_asked_for() -> bool:
    """Whether the command line has `-P prefork`, which Celery turned into our pool.

    Celery replaces prefork by "whatever is configured", so the pool class does not tell, but the
    source of the option does. Of the other values only `custom` leads to our pool, and it needs the
    variable.
    """
    context = click.get_current_context(silent=True)
    return (
        context is not None
        and context.get_parameter_source("pool") is ParameterSource.COMMANDLINE
        and "CELERY_CUSTOM_WORKER_POOL" not in os.environ
    )


def _refusal(pool: str) -> SystemExit:
    return SystemExit(
        f"Tidemill cannot run under the pool {pool}: a loaded model does not survive a fork, "
        "and every child would load its own. Leave -P away, or use -P threads."
    )


@worker_shutdown.connect
def stop_under_another_pool(**_: Any) -> None:
    if _worker is not None:
        _worker.drain(_worker.settings.drain_seconds)
        _worker.stop()


@worker_ready.connect
def freeze_gc(**_: Any) -> None:
    # Modules and other lasting objects, 140,000 of them. A collection that visits them all takes 70
    # to 90 ms, and every thread here waits meanwhile.
    gc.freeze()
    # The remaining objects belong to running jobs, hundreds of jobs at a time, and hardly any is
    # part of a cycle. Collecting after every 700 objects, Python's default, took a sixth of the
    # claimer's time.
    gc.set_threshold(20_000)
    gc.enable()  # cli.stack.celery_main starts without
