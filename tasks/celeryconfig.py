"""Celery's settings. Each that differs from Celery's default has its reason beside it."""

import click
from kombu import Queue

from tasks.configuration.catalog import Model
from tasks.configuration.settings import broker_url as find_broker_url
from tasks.configuration.settings import catalog, served_models
from tasks.errors import SettingsError, UnknownModel
from tasks.queues import MIN_MESSAGES, SUBMISSIONS, messages_in_flight, queue_names


def _broker_url() -> str:
    try:
        return find_broker_url()
    except SettingsError as error:
        # Celery's commands read this while they parse their options, and show a traceback of any
        # error that is not click's. All other callers get the error itself.
        context = click.get_current_context(silent=True)
        if context is None or context.find_root().command.name != "celery":
            raise
        raise click.ClickException(str(error)) from None


broker_url = _broker_url()
broker_connection_retry_on_startup = True
broker_connection_max_retries = None  # Celery would give up and end after about fifty minutes
broker_channel_error_retry = True  # Celery would end when a full Redis refuses a command
broker_transport_options = {
    # Leases bring back a dead worker's jobs within a minute. A short timeout
    # here would only deliver messages twice.
    "visibility_timeout": 6 * 3600,
    "socket_connect_timeout": 5,
    "socket_timeout": 30,
    "socket_keepalive": True,
    "health_check_interval": 25,
    "retry_on_timeout": True,
}

# Results are kept in the database, and only there.
result_backend = None
task_ignore_result = True

# No message is ever unpickled.
task_serializer = "json"
accept_content = ["json"]

task_acks_late = True  # after the commit
task_acks_on_failure = True  # a failure is in the database, and so is its retry
task_acks_on_timeout = True
worker_prefetch_multiplier = 1  # nothing waits inside the worker
worker_cancel_long_running_tasks_on_connection_loss = False  # a fenced duplicate costs less
worker_hijack_root_logger = False
worker_send_task_events = False  # events take 0.8 ms per message; -E turns them on for Flower
worker_pool = "worker.celery.pool:EnginePool"
worker_consumer = "worker.celery.consumer:Consumer"  # a consumer that no message can end
include = ("worker.celery.logging", "worker.celery.run_jobs")

task_default_queue = SUBMISSIONS


def _served() -> list[Model]:
    # A process that only submits needs no configuration; a worker finds the fault itself and
    # reports it in a sentence.
    try:
        return list(catalog().only(served_models()).values())
    except (SettingsError, UnknownModel):
        return []


_models = _served()
task_queues = [
    Queue(name, routing_key=name) for name in queue_names(model.alias for model in _models)
]
task_create_missing_queues = True
worker_concurrency = max(MIN_MESSAGES, sum(map(messages_in_flight, _models)))
