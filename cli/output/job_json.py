"""A job as a JSON record, for other programs."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from db.outcome import SIGNALS
from db.reading.found_job import FoundJob
from db.suspicion import in_words


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
    "reasoning": lambda job: job.reasoning,
    "reasoning_tokens": lambda job: job.reasoning_tokens,
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
    "suspicions": lambda job: [each.value for each in job.suspicions],
    "reasons": lambda job: [in_words(each, job) for each in job.suspicions],
    "length_ratio": lambda job: job.length_ratio,
    "repetition": lambda job: job.repetition,
    "detected_language": lambda job: job.detected_language,
    "untranslated_share": lambda job: job.untranslated_share,
    "num_empty_parts": lambda job: job.num_empty_parts,
    "num_cut_parts": lambda job: job.num_cut_parts,
    "num_missed_placeholders": lambda job: job.num_missed_placeholders,
    "num_missed_terms": lambda job: job.num_missed_terms,
    "pruned_at": lambda job: _instant(job.pruned_at),
    "erased_at": lambda job: _instant(job.erased_at),
}
# What a record has where nobody chose; `alternatives` and `reasoning` follow where there are
# some, and when its texts went where they did.
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


# What follows them where somebody looks for what is suspicious.
SIGNAL_FIELDS = ("suspicions", "reasons", *SIGNALS)


def record(job: FoundJob, columns: Sequence[str] | None = None) -> dict[str, Any]:
    """The columns in order, JSON-able; by default `FIELDS`."""
    fields = {name: COLUMNS[name](job) for name in columns or FIELDS}
    if columns is None and job.alternatives:
        fields["alternatives"] = list(job.alternatives)
    if columns is None and job.reasoning is not None:
        fields |= {"reasoning": job.reasoning, "reasoning_tokens": job.reasoning_tokens}
    if columns is None and job.pruned_at:
        fields |= {name: COLUMNS[name](job) for name in ("pruned_at", "erased_at")}
    return fields
