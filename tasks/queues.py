"""The queues in Redis: one a model and lane, and one where producers drop contracts."""

from collections.abc import Iterable

from db.lane import Lane

# Celery's own default, so that a producer need not name it.
SUBMISSIONS = "celery"


def queue_name(model: str, lane: Lane) -> str:
    return f"tidemill.{model}.{lane}"


def queue_names(models: Iterable[str]) -> list[str]:
    """What a worker that serves these models consumes, what people wait for first."""
    models = list(models)
    return [
        SUBMISSIONS,
        *(queue_name(model, Lane.INTERACTIVE) for model in models),
        *(queue_name(model, Lane.BULK) for model in models),
    ]
