"""Queue names in Redis: one for each model and lane, and one for contracts from producers."""

from collections.abc import Iterable

from db.lane import Lane
from tasks.configuration.catalog import Model

# Celery's own default, so that a producer need not name it.
SUBMISSIONS = "celery"

RUN_JOBS = "tasks.run_jobs"  # the task whose messages carry ids of jobs

JOBS_PER_MESSAGE = 16  # of the bulk lane, unless the worker's settings say otherwise
MIN_MESSAGES = 16
UNSIZED_PLACES = 128  # for a model whose batch size is unknown until it is loaded


def queue_name(model: str, lane: Lane) -> str:
    return f"tidemill.{model}.{lane}"


def queue_names(models: Iterable[str]) -> list[str]:
    """The queues that a worker of these models consumes, interactive ones first."""
    models = list(models)
    return [
        SUBMISSIONS,
        *(queue_name(model, Lane.INTERACTIVE) for model in models),
        *(queue_name(model, Lane.BULK) for model in models),
    ]


def messages_in_flight(model: Model) -> int:
    """The number of a model's messages that a worker may hold unacked.

    It covers all published bulk messages, four for each place in its batch, and interactive ones,
    which carry one job each, for a whole batch. So an interactive job never waits for a bulk
    message to end, and interactive jobs alone can fill the model.
    """
    num_places = (model.max_sequences or UNSIZED_PLACES) * model.replicas
    return 4 * num_places // JOBS_PER_MESSAGE + max(8, num_places)
