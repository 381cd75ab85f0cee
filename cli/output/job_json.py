"""A job as a record: what readers pipe into other programs."""

from typing import Any

from db.reading import FoundJob

FIELDS = (
    "id",
    "batch",
    "custom_id",
    "task",
    "model",
    "state",
    "output",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "error",
    "metadata",
    "created_at",
    "finished_at",
)


def record(job: FoundJob) -> dict[str, Any]:
    """The fields in their order, JSON-able; `alternatives` only where there are some."""
    made: dict[str, Any] = {
        "id": str(job.id),
        "batch": job.batch,
        "custom_id": job.custom_id,
        "task": job.task,
        "model": job.model,
        "state": job.state.value,
        "output": job.output,
        "finish_reason": job.finish_reason,
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": job.completion_tokens,
        "error": ({"code": job.error.code, "message": job.error.message} if job.error else None),
        "metadata": dict(job.metadata),
        "created_at": job.created_at.isoformat(),
        "finished_at": job.finished_at.isoformat() if job.finished_at else None,
    }
    if job.alternatives:
        made["alternatives"] = list(job.alternatives)
    return made
