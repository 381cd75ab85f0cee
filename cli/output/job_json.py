"""A job as a record: what readers pipe into other programs."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from db.reading import FoundJob


def _instant(at: datetime | None) -> str | None:
    return at.isoformat() if at else None


def _error(job: FoundJob) -> dict[str, str] | None:
    return {"code": job.error.code, "message": job.error.message} if job.error else None


# Every column there is, as JSON has it. cli/options.py names them, too: a test compares.
COLUMNS: Mapping[str, Callable[[FoundJob], Any]] = {
    "id": lambda job: str(job.id),
    "batch": lambda job: job.batch,
    "custom_id": lambda job: job.custom_id,
    "task": lambda job: job.task,
    "model": lambda job: job.model,
    "state": lambda job: job.state.value,
    "input": lambda job: job.input,
    "output": lambda job: job.output,
    "alternatives": lambda job: list(job.alternatives),
    "finish_reason": lambda job: job.finish_reason,
    "prompt_tokens": lambda job: job.prompt_tokens,
    "completion_tokens": lambda job: job.completion_tokens,
    "left_out_characters": lambda job: job.left_out_characters,
    "cached_parts": lambda job: job.cached_parts,
    "error": _error,
    "error_code": lambda job: job.error.code if job.error else None,
    "error_message": lambda job: job.error.message if job.error else None,
    "metadata": lambda job: dict(job.metadata),
    "tenant": lambda job: job.tenant,
    "language": lambda job: job.language,
    "attempt": lambda job: job.attempt,
    "created_at": lambda job: _instant(job.created_at),
    "started_at": lambda job: _instant(job.started_at),
    "finished_at": lambda job: _instant(job.finished_at),
    "wait_seconds": lambda job: job.wait_seconds,
    "run_seconds": lambda job: job.run_seconds,
    "pruned_at": lambda job: _instant(job.pruned_at),
    "erased_at": lambda job: _instant(job.erased_at),
}
# What a record has where nobody chose; `alternatives` follow where there are some, and when
# its texts went where they did.
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
    "tenant",
    "language",
    "started_at",
    "wait_seconds",
    "run_seconds",
)


def record(job: FoundJob, columns: Sequence[str] | None = None) -> dict[str, Any]:
    """The columns in their order, JSON-able; by default `FIELDS`."""
    made = {name: COLUMNS[name](job) for name in columns or FIELDS}
    if columns is None and job.alternatives:
        made["alternatives"] = list(job.alternatives)
    if columns is None and job.pruned_at:
        made |= {name: COLUMNS[name](job) for name in ("pruned_at", "erased_at")}
    return made
